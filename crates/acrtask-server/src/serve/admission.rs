//! Admission of anonymous work: connections and requests without a valid credential so far.
//!
//! Work is counted per address and in total. New work is always admitted. If a limit is reached,
//! the address with the most slots loses one: the oldest slot of its connection with the most
//! slots. An address with one request therefore loses nothing to one with a hundred.
//!
//! Invariant: at most `total` slots exist, and at most `per_address` per address.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, OnceLock},
};

use tokio_util::sync::CancellationToken;

/// Limit that caused an eviction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Eviction {
    /// An address exceeded its limit.
    PerAddress(usize),
    /// All addresses together exceeded the limit.
    Total(usize),
}

/// Slots for anonymous work.
#[derive(Debug)]
pub(crate) struct Admission {
    total: usize,
    per_address: usize,
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    next: u64,
    count: usize,
    by_address: HashMap<IpAddr, OfAddress>,
    /// All addresses, ordered by their number of slots.
    by_count: BTreeSet<(usize, IpAddr)>,
}

/// Slots of one address.
#[derive(Debug, Default)]
struct OfAddress {
    count: usize,
    /// Slots by connection and slot number.
    by_connection: HashMap<u64, BTreeMap<u64, Evicted>>,
    /// Connections by their number of slots. Of connections with equal numbers, the oldest is last.
    by_count: BTreeSet<(usize, Reverse<u64>)>,
}

impl OfAddress {
    fn insert(&mut self, connection: u64, number: u64, evicted: Evicted) {
        let slots = self.by_connection.entry(connection).or_default();
        self.by_count.remove(&(slots.len(), Reverse(connection)));
        slots.insert(number, evicted);
        self.by_count.insert((slots.len(), Reverse(connection)));
        self.count += 1;
    }

    fn remove(&mut self, connection: u64, number: u64) -> Option<Evicted> {
        let slots = self.by_connection.get_mut(&connection)?;
        let before = slots.len();
        let removed = slots.remove(&number)?;
        self.by_count.remove(&(before, Reverse(connection)));
        match before {
            1 => drop(self.by_connection.remove(&connection)),
            _ => drop(self.by_count.insert((before - 1, Reverse(connection)))),
        }
        self.count -= 1;
        Some(removed)
    }

    /// Returns the oldest slot of the connection with the most slots: connection and slot number.
    fn find_heaviest(&self) -> Option<(u64, u64)> {
        let (_, Reverse(connection)) = self.by_count.last()?;
        let slots = self.by_connection.get(connection)?;
        Some((*connection, *slots.keys().next()?))
    }
}

/// Signal that a slot was evicted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Evicted {
    token: CancellationToken,
    why: Arc<OnceLock<Eviction>>,
}

impl Evicted {
    /// Waits until the slot is evicted, and returns the cause.
    pub(crate) async fn wait(&self) -> Eviction {
        self.token.cancelled().await;
        *self.why.get().expect("set before the token is cancelled")
    }

    fn trigger(&self, why: Eviction) {
        let _ = self.why.set(why);
        self.token.cancel();
    }
}

/// A slot for anonymous work. Dropping it frees the slot.
#[derive(Debug)]
pub(crate) struct Slot {
    admission: Arc<Admission>,
    address: IpAddr,
    connection: u64,
    number: u64,
    evicted: Evicted,
}

impl Slot {
    /// Returns the eviction signal of the slot.
    pub(crate) fn evicted(&self) -> Evicted {
        self.evicted.clone()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut slots = self.admission.slots.lock().expect("never poisoned");
        slots.remove(self.address, self.connection, self.number);
    }
}

impl Admission {
    pub(crate) fn new(total: usize, per_address: usize) -> Arc<Self> {
        Arc::new(Self {
            total,
            per_address: per_address.min(total),
            slots: Mutex::default(),
        })
    }

    /// Admits work of a connection. If a limit is reached, evicts the heaviest connection of the
    /// same address or the heaviest address.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr, connection: u64) -> Slot {
        let mut slots = self.slots.lock().expect("never poisoned");
        if slots.count_of(address) >= self.per_address {
            slots.evict(address, Eviction::PerAddress(self.per_address));
        } else if slots.count >= self.total
            && let Some((_, heaviest)) = slots.by_count.last().copied()
        {
            slots.evict(heaviest, Eviction::Total(self.total));
        }
        let (number, evicted) = (slots.next, Evicted::default());
        slots.next += 1;
        slots.insert(address, connection, number, evicted.clone());
        drop(slots);
        Slot {
            admission: self.clone(),
            address,
            connection,
            number,
            evicted,
        }
    }
}

impl Slots {
    fn count_of(&self, address: IpAddr) -> usize {
        self.by_address.get(&address).map_or(0, |of| of.count)
    }

    fn insert(&mut self, address: IpAddr, connection: u64, number: u64, evicted: Evicted) {
        let before = self.count_of(address);
        let of_address = self.by_address.entry(address).or_default();
        of_address.insert(connection, number, evicted);
        self.by_count.remove(&(before, address));
        self.by_count.insert((before + 1, address));
        self.count += 1;
    }

    fn remove(&mut self, address: IpAddr, connection: u64, number: u64) -> Option<Evicted> {
        let of_address = self.by_address.get_mut(&address)?;
        let before = of_address.count;
        let removed = of_address.remove(connection, number)?;
        if of_address.count == 0 {
            self.by_address.remove(&address);
        }
        self.by_count.remove(&(before, address));
        if before > 1 {
            self.by_count.insert((before - 1, address));
        }
        self.count -= 1;
        Some(removed)
    }

    fn evict(&mut self, address: IpAddr, why: Eviction) {
        let of_address = self.by_address.get(&address);
        if let Some((connection, number)) = of_address.and_then(OfAddress::find_heaviest)
            && let Some(evicted) = self.remove(address, connection, number)
        {
            evicted.trigger(why);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn evicted(slot: &Slot) -> Option<Eviction> {
        slot.evicted().wait().now_or_never()
    }

    #[test]
    fn address_at_its_limit_loses_its_oldest_slot() {
        let admission = Admission::new(8, 2);
        let (first, second) = (
            admission.admit(address(1), 1),
            admission.admit(address(1), 2),
        );
        let other = admission.admit(address(2), 3);
        let third = admission.admit(address(1), 4);
        assert_eq!(evicted(&first), Some(Eviction::PerAddress(2)));
        for slot in [&second, &other, &third] {
            assert_eq!(evicted(slot), None);
        }
    }

    #[test]
    fn heaviest_address_loses_a_slot_when_all_slots_are_used() {
        let admission = Admission::new(4, 3);
        let heavy: Vec<Slot> = (0..3).map(|n| admission.admit(address(1), n)).collect();
        let light = admission.admit(address(2), 4);
        let newcomer = admission.admit(address(3), 5);
        assert_eq!(evicted(&heavy[0]), Some(Eviction::Total(4)));
        for slot in [&heavy[1], &heavy[2], &light, &newcomer] {
            assert_eq!(evicted(slot), None);
        }
    }

    #[test]
    fn heaviest_connection_of_an_address_loses_its_oldest_slot() {
        let admission = Admission::new(8, 4);
        let light = admission.admit(address(1), 1);
        let heavy: Vec<Slot> = (0..3).map(|_| admission.admit(address(1), 2)).collect();
        let newcomer = admission.admit(address(1), 3);
        assert_eq!(evicted(&heavy[0]), Some(Eviction::PerAddress(4)));
        for slot in [&light, &heavy[1], &heavy[2], &newcomer] {
            assert_eq!(evicted(slot), None);
        }
        drop(heavy);
        drop((light, newcomer));
        assert!(admission.slots.lock().unwrap().by_address.is_empty());
    }

    #[test]
    fn dropped_slots_are_freed() {
        let admission = Admission::new(2, 2);
        for _ in 0..10 {
            let (one, two) = (
                admission.admit(address(1), 1),
                admission.admit(address(2), 2),
            );
            assert_eq!((evicted(&one), evicted(&two)), (None, None));
        }
        let slots = admission.slots.lock().unwrap();
        assert_eq!(slots.count, 0);
        assert!(slots.by_address.is_empty() && slots.by_count.is_empty());
    }
}

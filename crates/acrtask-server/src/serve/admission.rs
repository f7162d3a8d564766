//! Admission of anonymous work: connections and requests that have shown no valid credential yet.
//!
//! Work is counted per address and in total. Newcomers are always admitted: where a limit is reached, the address that
//! has the most makes room, and of its connections the one that has the most, with its oldest work. So a connection
//! with one request loses nothing to one with a hundred. Invariant: at most `total` slots exist, at most `per_address`
//! per address.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, OnceLock},
};

use tokio_util::sync::CancellationToken;

/// The limit because of which a slot was taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Eviction {
    /// More slots of one address than it may have.
    PerAddress(usize),
    /// More slots of all addresses together than there are.
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
    /// The same addresses, ordered by their number of slots.
    by_count: BTreeSet<(usize, IpAddr)>,
}

/// The slots of an address.
#[derive(Debug, Default)]
struct OfAddress {
    count: usize,
    /// By connection and number.
    by_connection: HashMap<u64, BTreeMap<u64, Evicted>>,
    /// The same connections by their number of slots. Of connections with equal numbers, the oldest one is last.
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

    /// Returns the oldest slot of the connection that has the most: connection and number.
    fn heaviest(&self) -> Option<(u64, u64)> {
        let (_, Reverse(connection)) = self.by_count.last()?;
        let slots = self.by_connection.get(connection)?;
        Some((*connection, *slots.keys().next()?))
    }
}

/// Shows an owner of a slot that it was taken away.
#[derive(Debug, Clone, Default)]
pub(crate) struct Evicted {
    token: CancellationToken,
    why: Arc<OnceLock<Eviction>>,
}

impl Evicted {
    /// Waits until the slot is taken away.
    pub(crate) async fn reached(&self) -> Eviction {
        self.token.cancelled().await;
        *self.why.get().expect("set before the token is cancelled")
    }

    fn set(&self, why: Eviction) {
        let _ = self.why.set(why);
        self.token.cancel();
    }
}

/// The right to work anonymously; ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    admission: Arc<Admission>,
    address: IpAddr,
    connection: u64,
    number: u64,
    evicted: Evicted,
}

impl Slot {
    /// Shows when the slot is taken away.
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

    /// Admits work of a connection, at the cost of the heaviest connection of its address or of the heaviest address.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr, connection: u64) -> Slot {
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
        if let Some((connection, number)) = of_address.and_then(OfAddress::heaviest)
            && let Some(evicted) = self.remove(address, connection, number)
        {
            evicted.set(why);
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
        slot.evicted().reached().now_or_never()
    }

    #[test]
    fn oldest_slot_of_an_address_makes_room() {
        let admission = Admission::new(8, 2);
        let (first, second) = (
            admission.enter(address(1), 1),
            admission.enter(address(1), 2),
        );
        let other = admission.enter(address(2), 3);
        let third = admission.enter(address(1), 4);
        assert_eq!(evicted(&first), Some(Eviction::PerAddress(2)));
        for slot in [&second, &other, &third] {
            assert_eq!(evicted(slot), None);
        }
    }

    #[test]
    fn heaviest_address_makes_room_when_all_slots_are_taken() {
        let admission = Admission::new(4, 3);
        let heavy: Vec<Slot> = (0..3).map(|n| admission.enter(address(1), n)).collect();
        let light = admission.enter(address(2), 4);
        let newcomer = admission.enter(address(3), 5);
        assert_eq!(evicted(&heavy[0]), Some(Eviction::Total(4)));
        for slot in [&heavy[1], &heavy[2], &light, &newcomer] {
            assert_eq!(evicted(slot), None);
        }
    }

    #[test]
    fn heaviest_connection_of_an_address_makes_room() {
        let admission = Admission::new(8, 4);
        let light = admission.enter(address(1), 1);
        let heavy: Vec<Slot> = (0..3).map(|_| admission.enter(address(1), 2)).collect();
        let newcomer = admission.enter(address(1), 3);
        assert_eq!(evicted(&heavy[0]), Some(Eviction::PerAddress(4)));
        for slot in [&light, &heavy[1], &heavy[2], &newcomer] {
            assert_eq!(evicted(slot), None);
        }
        drop(heavy);
        drop((light, newcomer));
        assert!(admission.slots.lock().unwrap().by_address.is_empty());
    }

    #[test]
    fn dropped_slots_are_free_again() {
        let admission = Admission::new(2, 2);
        for _ in 0..10 {
            let (one, two) = (
                admission.enter(address(1), 1),
                admission.enter(address(2), 2),
            );
            assert_eq!((evicted(&one), evicted(&two)), (None, None));
        }
        let slots = admission.slots.lock().unwrap();
        assert_eq!(slots.count, 0);
        assert!(slots.by_address.is_empty() && slots.by_count.is_empty());
    }
}

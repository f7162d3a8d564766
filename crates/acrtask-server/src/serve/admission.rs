//! Admission of anonymous work: connections and requests that have shown no valid credential yet.
//!
//! Work is counted per address and in total. Newcomers are always admitted: where a limit is reached, the
//! oldest work of the address that has the most makes room. Whoever stalls loses its slot, whoever finishes
//! in milliseconds does not notice. Invariant: at most `total` slots exist, at most `per_address` per address.

use std::{
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
    by_address: HashMap<IpAddr, BTreeMap<u64, Evicted>>,
    /// The same addresses, ordered by their number of slots.
    by_count: BTreeSet<(usize, IpAddr)>,
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
        slots.remove(self.address, self.number);
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

    /// Admits a newcomer, at the cost of the oldest slot of its address or of the address with the most slots.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Slot {
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
        slots.insert(address, number, evicted.clone());
        drop(slots);
        Slot {
            admission: self.clone(),
            address,
            number,
            evicted,
        }
    }
}

impl Slots {
    fn count_of(&self, address: IpAddr) -> usize {
        self.by_address.get(&address).map_or(0, BTreeMap::len)
    }

    fn insert(&mut self, address: IpAddr, number: u64, evicted: Evicted) {
        let before = self.count_of(address);
        self.by_address
            .entry(address)
            .or_default()
            .insert(number, evicted);
        self.by_count.remove(&(before, address));
        self.by_count.insert((before + 1, address));
        self.count += 1;
    }

    fn remove(&mut self, address: IpAddr, number: u64) -> Option<Evicted> {
        let of_address = self.by_address.get_mut(&address)?;
        let before = of_address.len();
        let removed = of_address.remove(&number)?;
        if of_address.is_empty() {
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
        let oldest = of_address.and_then(|slots| slots.keys().next().copied());
        if let Some(evicted) = oldest.and_then(|number| self.remove(address, number)) {
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
        let (first, second) = (admission.enter(address(1)), admission.enter(address(1)));
        let other = admission.enter(address(2));
        let third = admission.enter(address(1));
        assert_eq!(evicted(&first), Some(Eviction::PerAddress(2)));
        for slot in [&second, &other, &third] {
            assert_eq!(evicted(slot), None);
        }
    }

    #[test]
    fn heaviest_address_makes_room_when_all_slots_are_taken() {
        let admission = Admission::new(4, 3);
        let heavy: Vec<Slot> = (0..3).map(|_| admission.enter(address(1))).collect();
        let light = admission.enter(address(2));
        let newcomer = admission.enter(address(3));
        assert_eq!(evicted(&heavy[0]), Some(Eviction::Total(4)));
        for slot in [&heavy[1], &heavy[2], &light, &newcomer] {
            assert_eq!(evicted(slot), None);
        }
    }

    #[test]
    fn dropped_slots_are_free_again() {
        let admission = Admission::new(2, 2);
        for _ in 0..10 {
            let (one, two) = (admission.enter(address(1)), admission.enter(address(2)));
            assert_eq!((evicted(&one), evicted(&two)), (None, None));
        }
        let slots = admission.slots.lock().unwrap();
        assert_eq!(slots.count, 0);
        assert!(slots.by_address.is_empty() && slots.by_count.is_empty());
    }
}

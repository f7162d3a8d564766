//! Images and their bases: what is stale ([`known`]).

pub(crate) mod known;

//! Takes leases back that are over.

//! The listener, and everything that runs behind it.

//! The runner against a control plane that is made to fail, with work that follows a script.
//!
//! Both are stand-ins: [`plane`] for the faults that a real one shows rarely, [`script`] for steps whose moment the test
//! decides. The stream between them is real: tonic over a socket.

mod faults;
mod holding;
mod plane;
mod pushes;
mod room;
mod script;

//! TLS: what is agreed on, what is refused, and that no byte is lost on the way.
#![forbid(unsafe_code)]

#[path = "tls/bounds.rs"]
mod bounds;
#[path = "tls/bytes.rs"]
mod bytes;
#[path = "../examples/common/certificates.rs"]
mod certificates;
#[path = "tls/certs.rs"]
mod certs;
mod common;
#[path = "tls/endings.rs"]
mod endings;
#[path = "tls/errors.rs"]
mod errors;
#[path = "tls/rig.rs"]
mod rig;

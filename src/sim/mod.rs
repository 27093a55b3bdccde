//! Deterministic simulation: whole hosts, their network, their clocks and their faults, in one thread, from a seed.
//!
//! The code under test is the code of production: it calls [`TcpStream`](crate::net::TcpStream),
//! [`sleep`](crate::sleep), [`spawn`](crate::spawn) and the rest as ever, and does not know. Under it, in place of
//! io_uring or epoll, stands a backend whose kernel, network, disk and clock are simulated. Time is virtual and jumps
//! from event to event, so an hour of waiting costs nothing. One 64-bit seed decides everything that varies: which
//! host runs next, how long a segment travels, where it is cut, which completion comes late or out of order, which
//! call runs out of descriptors, which host crashes. The same seed is the same run, byte for byte of its log; so a
//! bug that needs a year of bad luck needs an evening of seeds, and happens again whenever it is asked to.
//!
//! ```
//! use anabranch::net::{TcpListener, TcpStream};
//! use anabranch::sim::{Builder, Faults};
//!
//! async fn serve() -> std::io::Result<()> {
//!     let listener = TcpListener::bind("0.0.0.0:80").await?;
//!     loop {
//!         let (mut stream, _) = listener.accept().await?;
//!         anabranch::spawn(async move {
//!             while let Ok(Some(bytes)) = stream.recv().await {
//!                 if stream.send(bytes).await.is_err() {
//!                     break;
//!                 }
//!             }
//!         });
//!     }
//! }
//!
//! let report = Builder::new()
//!     .seed(7)
//!     .faults(Faults::rough())
//!     .server("server", serve)
//!     .host("client", || async {
//!         // A fault may cut the connection: then once more.
//!         loop {
//!             let attempt = async {
//!                 let mut stream = TcpStream::connect("server:80").await?;
//!                 stream.send("hello").await?;
//!                 stream.recv_exact(5).await
//!             };
//!             if let Ok(Ok(echo)) = anabranch::timeout(std::time::Duration::from_secs(60), attempt).await {
//!                 assert_eq!(&echo[..], b"hello");
//!                 return Ok::<(), std::io::Error>(());
//!             }
//!             anabranch::sleep(std::time::Duration::from_millis(100)).await;
//!         }
//!     })
//!     .run()
//!     .unwrap();
//! println!("{report}");
//! ```
//!
//! The run ends when the mains of all hosts have returned; those added with [`Builder::server`] serve until then and
//! are stopped; one whose main fails meanwhile starts again, as under a supervisor. It **fails** if a main returns an error or panics, if a task panics, if nothing can ever happen any
//! more though a main has not returned (every operation must end), if the time limit passes, if a check of the test
//! says so, or if a shard's ledger is not settled at its end: an operation without its one end, a buffer that did not
//! come home, a descriptor left open. The failure names the seed and the last events;
//! `ANABRANCH_SIM_SEED=n cargo test name` runs exactly that seed again.
//!
//! # What code under test must not do
//!
//! What comes from elsewhere than the runtime comes from outside of the seed: `std::time`, `std::net`, threads,
//! random numbers of other crates, and the order of a `HashMap` with its random keys. Use [`time::now`](crate::time::now),
//! [`time::wall`](crate::time::wall), [`random`](crate::random), [`offload`](crate::offload) and ordered maps;
//! [`replays`](Builder::replays) finds what was missed. A [`Shard`](crate::Shard) or [`Runtime`](crate::Runtime) cannot be
//! made inside of a simulated host, which has its shards already: [`Host::shards`] says how many.
#![forbid(unsafe_code)]

#[doc(hidden)]
pub mod alone;
mod builder;
mod failure;
mod interrupt;
mod process;
mod schedule;
mod world;

pub use crate::driver::sys::sim::{Fault, FaultCounts, Faults};
pub use builder::{Builder, Ending, Host, replays, seeds};
pub use failure::{Failure, Report};
pub use world::{Connection, World, note};

#[doc = include_str!("../../docs/test-your-own-protocol.md")]
pub mod guide {}

//! Nodes: both forms, bounds on datagrams, what is told of errors, and the handle of other threads.

use crate::common::net::{anywhere, check, nobody, on_real_backends, on_typical_backends, pattern};
use crate::common::on_every_backend;
use anabranch::component::udp::{DATAGRAM_BYTES, NodeHandler, NodeOptions, SendError, UdpError, UdpNode};
use anabranch::net::{Datagram, Segments, SendOptions, UdpSocket};
use anabranch::{Runtime, spawn};
use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

fn node(options: NodeOptions) -> UdpNode {
    UdpNode::bind(anywhere(), options).unwrap()
}

/// The bytes of the next batch, which must be one datagram.
async fn one(node: &UdpNode) -> (Vec<u8>, SocketAddr) {
    let batch = node.recv().await.expect("the node is open").expect("a datagram");
    assert_eq!(batch.count_left(), 1);
    (batch.bytes().to_vec(), batch.from())
}

/// Sends everything back, and notes what it hears.
#[derive(Clone, Default)]
struct Echo(Rc<RefCell<Vec<String>>>);

impl Echo {
    fn note(&self, what: impl Into<String>) {
        self.0.borrow_mut().push(what.into());
    }
}

impl NodeHandler for Echo {
    fn on_prepare(&mut self, socket: &UdpSocket) -> io::Result<()> {
        self.note(format!("prepare {}", socket.local_addr()?.ip()));
        Ok(())
    }

    fn on_receive(&mut self, node: &UdpNode, datagram: Datagram) {
        self.note(format!("receive {}", datagram.lease.len()));
        node.try_send_to(datagram.lease, datagram.from).unwrap();
    }

    fn on_error(&mut self, _: &UdpNode, error: UdpError) {
        self.note(if error.is_send() { "send error" } else { "error" });
    }

    fn on_shutdown(&mut self) {
        self.note("shutdown");
    }
}

#[test]
fn a_handler_hears_of_datagrams_and_once_of_the_end() {
    on_every_backend(|config| {
        check(config, async {
            let (server, client) = (node(NodeOptions::new()), node(NodeOptions::new()));
            let (address, handle) = (server.local_addr().unwrap(), server.handle());
            let echo = Echo::default();
            let mut handler = echo.clone();
            let serving = spawn(async move { server.serve(&mut handler).await });
            for len in [1, 0, DATAGRAM_BYTES, 7] {
                client.send_to(pattern(len), address).await.unwrap();
                assert_eq!(one(&client).await, (pattern(len), address));
            }
            handle.stop();
            serving.await.unwrap().unwrap();
            let heard =
                ["prepare 127.0.0.1", "receive 1", "receive 0", "receive 1432", "receive 7", "shutdown"];
            assert_eq!(*echo.0.borrow(), heard);
            let counters = handle.counters();
            assert_eq!((counters.datagrams_in, counters.bytes_in), (4, 1440));
            assert_eq!((counters.datagrams_out, counters.bytes_out), (4, 1440));
            assert_eq!((counters.errors, counters.dropped_in, counters.dropped_out), (0, 0, 0));
            handle.wait();
        });
    });
}

#[test]
fn a_datagram_that_is_too_long_is_refused_by_type_on_every_way_out() {
    on_typical_backends(|config| {
        check(config, async {
            let node = node(NodeOptions::new().datagram_bytes_max(100));
            let is_refused = |refused: Result<(), SendError>, len| match refused {
                Err(SendError::TooLong { bytes, max }) => assert_eq!((bytes, max), (len, 100)),
                other => panic!("{other:?}"),
            };
            is_refused(node.send_to(vec![0; 101], nobody()).await, 101);
            is_refused(node.try_send_to(vec![0; 5000], nobody()), 5000);
            is_refused(node.handle().send_to(vec![0; 101], nobody()), 101);
            let segments = SendOptions::new().segment_bytes(101);
            is_refused(node.try_send_with(vec![0; 300], nobody(), segments), 101);
            assert_eq!(node.handle().counters().dropped_out, 4);
            assert_eq!(node.handle().counters().datagrams_out, 0);
            let address = node.local_addr().unwrap();
            node.try_send_with(pattern(250), address, SendOptions::new().segment_bytes(100)).unwrap();
            assert_eq!(node.counters().datagrams_out, 3);
        });
    });
}

#[test]
fn a_datagram_that_came_in_too_long_is_told_and_never_delivered() {
    on_every_backend(|config| {
        check(config, async {
            let node = node(NodeOptions::new().datagram_bytes_max(100));
            let other = UdpSocket::bind(anywhere()).await.unwrap();
            let (to, from) = (node.local_addr().unwrap(), other.local_addr().unwrap());
            for len in [100, 101, 5000, 99] {
                other.send_to(pattern(len), to).await.unwrap();
            }
            // Joined or not, only what is too long is missing.
            other.send_segments(pattern(250), 110, to).await.unwrap();
            let (mut lengths, mut too_long) = (Vec::new(), Vec::new());
            while lengths.len() + too_long.len() < 7 {
                match node.recv().await.unwrap() {
                    Ok(batch) => lengths.extend(batch.map(|datagram| datagram.lease.len())),
                    Err(UdpError::TooLong { peer, bytes, max }) => {
                        assert_eq!((peer, max), (from, 100));
                        too_long.push(bytes);
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            assert_eq!((lengths, too_long), (vec![100, 99, 30], vec![101, 5000, 110, 110]));
            let counters = node.counters();
            assert_eq!((counters.datagrams_in, counters.dropped_in), (3, 4));
        });
    });
}

#[test]
fn a_datagram_that_was_cut_is_told_and_never_delivered() {
    on_typical_backends(|config| {
        let config = config.with_limits(|limits| limits.datagram_buffer_bytes = 1024);
        check(config, async {
            let node = node(NodeOptions::new().datagram_bytes_max(60_000));
            let other = UdpSocket::bind(anywhere()).await.unwrap();
            let to = node.local_addr().unwrap();
            other.send_to(pattern(5000), to).await.unwrap();
            other.send_to(pattern(1000), to).await.unwrap();
            let cut = node.recv().await.unwrap();
            assert!(matches!(cut, Err(UdpError::TooLong { bytes: 1024, .. })), "{cut:?}");
            assert_eq!(one(&node).await.0, pattern(1000));
            assert_eq!(node.counters().dropped_in, 1);
        });
    });
}

#[test]
fn what_a_datagram_meets_is_told_with_its_peer_and_costs_no_other() {
    on_real_backends(|config| {
        check(config, async {
            let (node, other) = (node(NodeOptions::new()), UdpSocket::bind(anywhere()).await.unwrap());
            // No system sends to port 0; a peer could make us try, as its own address says where it sends from.
            let bad = SocketAddr::from(([127, 0, 0, 1], 0));
            for n in 0..5 {
                node.send_to(vec![n], bad).await.unwrap();
                node.send_to(vec![n], other.local_addr().unwrap()).await.unwrap();
            }
            for n in 0..5 {
                assert_eq!(&*other.recv_from().await.unwrap().lease, [n]);
            }
            for _ in 0..5 {
                match node.recv().await.unwrap() {
                    Err(UdpError::Send { peer, .. }) => assert_eq!(peer, bad),
                    received => panic!("{received:?}"),
                }
            }
            assert_eq!(node.counters().errors, 5);
            // And it goes on.
            other.send_to("on", node.local_addr().unwrap()).await.unwrap();
            assert_eq!(one(&node).await.0, b"on");
        });
    });
}

#[test]
fn a_flood_of_errors_is_bounded_and_counted() {
    on_real_backends(|config| {
        check(config, async {
            let node = node(NodeOptions::new());
            let bad = SocketAddr::from(([127, 0, 0, 1], 0));
            for _ in 0..2000 {
                node.send_to("x", bad).await.unwrap();
            }
            while node.counters().errors < 2000 {
                assert!(matches!(node.recv().await.unwrap(), Err(UdpError::Send { .. })));
            }
            assert_eq!(node.counters().datagrams_out, 2000);
        });
    });
}

#[test]
fn a_full_queue_refuses_and_counts_and_waiting_senders_get_through() {
    on_typical_backends(|config| {
        let config = config.with_limits(|limits| limits.datagrams_outbound_max = 4);
        check(config, async {
            let (node, other) = (node(NodeOptions::new()), UdpSocket::bind(anywhere()).await.unwrap());
            let to = other.local_addr().unwrap();
            let sent: Vec<_> = (0..10).map(|n| node.try_send_to(vec![n], to)).collect();
            let refused = sent.iter().filter(|sent| matches!(sent, Err(SendError::Full))).count();
            assert_eq!((refused, node.counters().dropped_out), (6, 6));
            for n in 10..30 {
                node.send_to(vec![n], to).await.unwrap();
            }
            for n in (0..4).chain(10..30) {
                assert_eq!(&*other.recv_from().await.unwrap().lease, [n]);
            }
        });
    });
}

#[test]
fn dropping_a_receive_loses_nothing() {
    on_typical_backends(|config| {
        check(config, async {
            let (ours, theirs) = (node(NodeOptions::new()), node(NodeOptions::new()));
            let to = theirs.local_addr().unwrap();
            for n in 0..20_u8 {
                let _ = anabranch::timeout(Duration::ZERO, theirs.recv()).await.map(|got| panic!("{got:?}"));
                ours.send_to(vec![n], to).await.unwrap();
                assert_eq!(one(&theirs).await.0, [n]);
            }
        });
    });
}

#[test]
fn stopping_ends_receives_sends_what_is_queued_and_refuses_more() {
    on_typical_backends(|config| {
        check(config, async {
            let (node, other) = (node(NodeOptions::new()), UdpSocket::bind(anywhere()).await.unwrap());
            let to = other.local_addr().unwrap();
            let waiting = spawn({
                let node = node.clone();
                async move { node.recv().await.is_none() }
            });
            anabranch::yield_now().await;
            node.send_to("queued", to).await.unwrap();
            node.handle().send_to("handed over", to).unwrap();
            node.stop();
            assert!(waiting.await.unwrap(), "it still receives");
            assert!(matches!(node.send_to("late", to).await, Err(SendError::Stopped)));
            assert!(matches!(node.try_send_to("late", to), Err(SendError::Stopped)));
            assert!(matches!(node.handle().send_to("late", to), Err(SendError::Stopped)));
            assert!(node.recv().await.is_none());
            assert_eq!(&*other.recv_from().await.unwrap().lease, b"queued");
            assert_eq!(&*other.recv_from().await.unwrap().lease, b"handed over");
        });
    });
}

#[test]
fn an_abandoned_service_tells_its_handler_and_can_be_taken_up_again() {
    on_typical_backends(|config| {
        check(config, async {
            let (server, client) = (node(NodeOptions::new()), node(NodeOptions::new()));
            let (mut echo, to) = (Echo::default(), server.local_addr().unwrap());
            let _ = anabranch::timeout(Duration::from_millis(1), server.serve(&mut echo)).await;
            assert_eq!(*echo.0.borrow(), ["prepare 127.0.0.1", "shutdown"]);
            let serving = spawn(async move { server.serve(&mut echo).await });
            client.send_to("again", to).await.unwrap();
            assert_eq!(one(&client).await.0, b"again");
            drop(serving);
        });
    });
}

struct Unprepared;

impl NodeHandler for Unprepared {
    fn on_prepare(&mut self, _: &UdpSocket) -> io::Result<()> {
        Err(io::Error::other("not today"))
    }

    fn on_shutdown(&mut self) {
        panic!("it was never there");
    }
}

#[test]
fn an_error_before_the_first_receive_ends_the_service() {
    on_typical_backends(|config| {
        check(config, async {
            let error = node(NodeOptions::new()).serve(&mut Unprepared).await.unwrap_err();
            assert_eq!(error.to_string(), "not today");
        });
    });
}

#[test]
fn a_batch_reaches_a_handler_as_it_came() {
    struct Batches(mpsc::Sender<(usize, usize)>);
    impl NodeHandler for Batches {
        fn on_batch(&mut self, node: &UdpNode, batch: Segments) {
            self.0.send((batch.count_left(), batch.bytes().len())).unwrap();
            if self.0.send((0, 0)).is_ok() && batch.bytes() == b"stop" {
                node.stop();
            }
        }
    }
    on_real_backends(|config| {
        check(config, async {
            let (server, client) = (node(NodeOptions::new()), node(NodeOptions::new()));
            let (sender, seen) = mpsc::channel();
            let to = server.local_addr().unwrap();
            let serving = spawn(async move { server.serve(&mut Batches(sender)).await });
            client.send_with(pattern(2500), to, SendOptions::new().segment_bytes(1000)).await.unwrap();
            client.send_to("stop", to).await.unwrap();
            serving.await.unwrap().unwrap();
            let seen: Vec<_> = seen.iter().filter(|(count, _)| *count > 0).collect();
            assert_eq!(seen.iter().map(|(count, _)| count).sum::<usize>(), 4, "{seen:?}");
            assert_eq!(seen.iter().map(|(_, bytes)| bytes).sum::<usize>(), 2504, "{seen:?}");
        });
    });
}

// Real threads, so no simulated machines.
#[test]
fn other_threads_send_by_the_handle_count_and_stop_every_shard_of_a_group() {
    on_real_backends(|config| {
        let client = std::net::UdpSocket::bind(anywhere()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let to = client.local_addr().unwrap();
        let shards = if cfg!(windows) { 1 } else { 2 };
        let options = NodeOptions::new();
        let handle = options.handle();
        let address = free_port();
        let (ready, started) = mpsc::channel();
        let runtime = Runtime::builder().shards(shards).config(config);
        let runtime = runtime.start(move |context| {
            let (options, ready) = (options.clone(), ready.clone());
            async move {
                let node = UdpNode::bind_group(&context, address, options)?;
                ready.send(()).unwrap();
                node.serve(&mut Echo::default()).await
            }
        });
        let runtime = runtime.unwrap();
        (0..shards).for_each(|_| started.recv().unwrap());
        let mut buffer = [0; 100];
        for n in 0..50_u8 {
            handle.send_to(vec![n], to).unwrap();
            let (len, from) = client.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..len], from), (&[n][..], address), "order to one peer is kept");
        }
        // Many peers, so that both shards have some.
        for _ in 0..20 {
            let peer = std::net::UdpSocket::bind(anywhere()).unwrap();
            peer.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            peer.send_to(b"hello", address).unwrap();
            assert_eq!(peer.recv_from(&mut buffer).unwrap().0, 5);
        }
        let counters = handle.counters();
        assert_eq!((counters.datagrams_in, counters.datagrams_out), (20, 70));
        handle.stop();
        handle.wait();
        assert!(matches!(handle.send_to("late", to), Err(SendError::Stopped)));
        runtime.join().into_iter().for_each(|end| end.result.unwrap());
        assert_eq!(handle.counters().datagrams_in, 20, "they are still there when the nodes are gone");
    });
}

/// An address that was free a moment ago.
fn free_port() -> SocketAddr {
    std::net::UdpSocket::bind(anywhere()).unwrap().local_addr().unwrap()
}

#[test]
fn the_queue_of_other_threads_is_bounded() {
    on_typical_backends(|config| {
        check(config, async {
            let (node, other) =
                (node(NodeOptions::new().mail_max(3)), UdpSocket::bind(anywhere()).await.unwrap());
            let to = other.local_addr().unwrap();
            // Nobody empties it as long as this task does not wait.
            let sent: Vec<_> = (0..5).map(|n| node.handle().send_to(vec![n], to)).collect();
            assert_eq!(sent.iter().filter(|sent| matches!(sent, Err(SendError::Full))).count(), 2);
            assert_eq!(node.handle().counters().dropped_out, 2);
            for n in 0..3 {
                assert_eq!(&*other.recv_from().await.unwrap().lease, [n]);
            }
            node.handle().send_to("room again", to).unwrap();
            assert_eq!(&*other.recv_from().await.unwrap().lease, b"room again");
        });
    });
}

#[test]
fn a_node_in_the_place_of_one_that_is_gone_is_reached_by_the_same_handle() {
    on_typical_backends(|config| {
        check(config, async {
            let (options, other) = (NodeOptions::new(), UdpSocket::bind(anywhere()).await.unwrap());
            let (handle, to) = (options.handle(), other.local_addr().unwrap());
            for n in 0..10_u8 {
                assert!(matches!(handle.send_to("nobody", to), Err(SendError::Stopped)));
                let node = node(options.clone());
                handle.send_to(vec![n], to).unwrap();
                let datagram = other.recv_from().await.unwrap();
                assert_eq!((&*datagram.lease, datagram.from), (&[n][..], node.local_addr().unwrap()));
            }
            assert_eq!(handle.counters().datagrams_out, 10);
        });
    });
}

#[test]
fn a_node_that_is_made_after_its_handle_stopped_is_stopped() {
    on_typical_backends(|config| {
        check(config, async {
            let options = NodeOptions::new();
            options.handle().stop();
            assert!(node(options).recv().await.is_none());
        });
    });
}

#[test]
fn a_node_needs_a_shard() {
    assert!(UdpNode::bind(anywhere(), NodeOptions::new()).is_err());
}

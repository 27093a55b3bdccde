//! Options of sockets, multicast and broadcast. On the loopback interface, which is where every machine has one; what a
//! machine cannot do there is said loudly.

use crate::common::net::{anywhere, check, nobody, on_real_backends, on_typical_backends};
use crate::common::peer;
use anabranch::component::udp::{MulticastOptions, NodeOptions, UdpCast, UdpNode};
use anabranch::net::{Interface, InvalidMulticast, OptionRefused, UdpOptions, UdpSocket};
use anabranch::{Config, timeout};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

const LOOPBACK: Interface = Interface::Address(Ipv4Addr::LOCALHOST);

/// A group of this process's own, so that no other test hears it; and a port that was free.
fn group(last: u8) -> SocketAddr {
    let id = std::process::id();
    let port = std::net::UdpSocket::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
    SocketAddr::from(([239, 255, (id % 250) as u8, last], port))
}

fn options(group: SocketAddr) -> MulticastOptions {
    MulticastOptions::new(group).interface(LOOPBACK)
}

fn member(group: SocketAddr) -> UdpCast {
    UdpCast::multicast(options(group)).unwrap()
}

/// What has arrived when a datagram that was sent later to the socket alone has; the loopback interface keeps order.
async fn heard(socket: &UdpSocket) -> Vec<String> {
    let marker = UdpSocket::bind(anywhere()).await.unwrap();
    let port = socket.local_addr().unwrap().port();
    marker.send_to("marker", SocketAddr::from(([127, 0, 0, 1], port))).await.unwrap();
    let mut heard = Vec::new();
    loop {
        let datagram = socket.recv_from().await.unwrap();
        if *datagram.lease == *b"marker" && datagram.from == marker.local_addr().unwrap() {
            return heard;
        }
        heard.push(String::from_utf8(datagram.lease.to_vec()).unwrap());
    }
}

#[test]
fn a_member_hears_the_group_until_it_leaves() {
    on_typical_backends(|config| {
        let simulated = peer::is_simulated(&config);
        check(config, async {
            let group = group(1);
            let (one, sender) = (member(group), UdpCast::multicast(options(group).local_port(0)).unwrap());
            assert_ne!(sender.socket().local_addr().unwrap().port(), group.port());
            assert_eq!((sender.target(), one.socket().local_addr().unwrap().port()), (group, group.port()));
            sender.send("hello").await.unwrap();
            let datagram = one.recv().await.unwrap();
            assert_eq!(&*datagram.lease, b"hello");
            assert_eq!(datagram.from.port(), sender.socket().local_addr().unwrap().port());
            one.leave().unwrap();
            assert_eq!(one.leave().unwrap_err().kind(), ErrorKind::AddrNotAvailable);
            sender.send("nobody hears").await.unwrap();
            match simulated {
                // There the datagram finds its hearers when it arrives.
                true => anabranch::sleep(Duration::from_millis(50)).await,
                false => assert_eq!(heard(one.socket()).await, [""; 0]),
            }
            one.join().unwrap();
            assert_eq!(one.join().unwrap_err().kind(), ErrorKind::AddrInUse);
            sender.try_send("again").unwrap().unwrap();
            assert_eq!(&*one.recv().await.unwrap().lease, b"again");
        });
    });
}

#[test]
fn several_members_on_one_port_all_hear_the_group() {
    on_typical_backends(|config| {
        check(config, async {
            let group = group(2);
            let members = [member(group), member(group), member(group)];
            let sender = UdpCast::multicast(options(group).local_port(0)).unwrap();
            for text in ["one", "two"] {
                sender.send(text).await.unwrap();
                for member in &members {
                    assert_eq!(&*member.recv_segments().await.unwrap().into_lease(), text.as_bytes());
                }
            }
            assert!(UdpSocket::bind_with(([0, 0, 0, 0], group.port()).into(), &UdpOptions::new()).is_err());
        });
    });
}

#[test]
fn a_member_hears_nothing_of_groups_that_only_others_have_joined() {
    on_real_backends(|config| {
        check(config, async {
            let (ours, mut theirs) = (group(3), group(4));
            theirs.set_port(ours.port());
            let (one, other) = (member(ours), member(theirs));
            UdpCast::multicast(options(theirs).local_port(0)).unwrap().send("psst").await.unwrap();
            assert_eq!(&*other.recv().await.unwrap().lease, b"psst");
            assert_eq!(heard_of(&one, &other).await, [""; 0]);
        });
    });
}

/// As [`heard`], where another socket has the port, too: whichever gets the marker, it was behind.
async fn heard_of(one: &UdpCast, _other: &UdpCast) -> Vec<String> {
    let mut heard = Vec::new();
    UdpCast::multicast(options(one.target()).local_port(0)).unwrap().send("marker").await.unwrap();
    loop {
        let datagram = one.recv().await.unwrap();
        if *datagram.lease == *b"marker" {
            return heard;
        }
        heard.push(String::from_utf8_lossy(&datagram.lease).into_owned());
    }
}

#[test]
fn a_source_filter_lets_one_source_through() {
    on_real_backends(|config| {
        check(config, async {
            let group = group(5);
            // All of 127.0.0.0/8 is on the loopback interface of Linux.
            let source = |last: u8| SocketAddr::from(([127, 0, 0, last], 0));
            let friend = UdpSocket::bind_with(source(2), &UdpOptions::new());
            let (Ok(friend), Ok(stranger)) = (friend, UdpSocket::bind_with(source(3), &UdpOptions::new()))
            else {
                return println!("NOT COVERED: source filters: there is one loopback address only");
            };
            for socket in [&friend, &stranger] {
                socket.set_multicast_interface(LOOPBACK).unwrap();
            }
            let one = UdpCast::multicast(options(group).source(source(2).ip())).unwrap();
            for (socket, text) in [(&stranger, "stranger"), (&friend, "friend"), (&stranger, "stranger")] {
                socket.send_to(text, group).await.unwrap();
                // One socket's sends keep their order; between sockets this lets the first one go ahead.
                anabranch::sleep(Duration::from_millis(2)).await;
            }
            assert_eq!(heard(one.socket()).await, ["friend"]);
            one.socket().join_source(source(3).ip(), group.ip(), LOOPBACK).unwrap();
            stranger.send_to("a friend by now", group).await.unwrap();
            assert_eq!(&*one.recv().await.unwrap().lease, b"a friend by now");
            one.socket().leave_source(source(2).ip(), group.ip(), LOOPBACK).unwrap();
            friend.send_to("was a friend", group).await.unwrap();
            anabranch::sleep(Duration::from_millis(2)).await;
            assert_eq!(heard(one.socket()).await, [""; 0]);
        });
    });
}

#[test]
fn what_cannot_be_a_membership_is_refused_by_type() {
    on_typical_backends(|config| {
        check(config, async {
            let socket = UdpSocket::bind(anywhere()).await.unwrap();
            let (group, group6): (IpAddr, IpAddr) =
                ("239.1.1.1".parse().unwrap(), "ff02::99".parse().unwrap());
            let one: IpAddr = "10.0.0.1".parse().unwrap();
            let refused = |outcome: std::io::Result<()>, expected| {
                let error = outcome.unwrap_err();
                assert_eq!(error.get_ref().and_then(|inner| inner.downcast_ref()), Some(&expected));
                error.kind()
            };
            let any = Interface::Any;
            let kind = refused(socket.join_multicast(one, any), InvalidMulticast::NotAGroup(one));
            assert_eq!(kind, ErrorKind::InvalidInput);
            for (group, interface) in [(group, Interface::Index(1)), (group6, LOOPBACK)] {
                let expected = InvalidMulticast::OtherInterface { group, interface };
                refused(socket.join_multicast(group, interface), expected);
                refused(socket.leave_multicast(group, interface), expected);
            }
            let other = InvalidMulticast::OtherSource { group, source: group6 };
            refused(socket.join_source(group6, group, any), other);
            let kind = refused(socket.join_source(group6, group6, any), InvalidMulticast::SourceOfV6);
            assert_eq!(kind, ErrorKind::Unsupported);
            assert!(UdpCast::broadcast(0, "[ff02::1]:1".parse().unwrap()).is_err());
        });
    });
}

/// As [`options`], on an interface that leads out of the host, which a TTL of 0 keeps datagrams from doing: what is sent on
/// the loopback interface comes back whether it loops or not.
fn outward(group: SocketAddr) -> MulticastOptions {
    MulticastOptions::new(group).ttl(0)
}

#[test]
fn a_sender_that_does_not_loop_is_not_heard_on_its_own_host() {
    on_typical_backends(|config| {
        check(config, async {
            let group = group(6);
            let cast = |loops| UdpCast::multicast(outward(group).local_port(0).loops(loops)).unwrap();
            let Ok(one) = UdpCast::multicast(outward(group)) else {
                return println!("NOT COVERED: loop: no interface leads out of this machine");
            };
            if cfg!(windows) {
                return println!("NOT COVERED: loop, which is the receiver's there");
            }
            let (mute, loud) = (cast(false), cast(true));
            mute.send("mute").await.unwrap();
            anabranch::sleep(Duration::from_millis(2)).await;
            loud.send("loud").await.unwrap();
            match timeout(Duration::from_secs(2), one.recv()).await {
                Ok(first) => assert_eq!(&*first.unwrap().lease, b"loud"),
                Err(_) => println!("NOT COVERED: loop: no interface of this machine carries groups"),
            }
        });
    });
}

// Not on Windows: it reads options of a descriptor.
#[cfg(unix)]
#[test]
fn options_that_are_set_are_those_of_the_system() {
    use socket2::SockRef;
    on_real_backends(|config| {
        check(config, async {
            let options =
                UdpOptions::new().broadcast().ttl(7).receive_buffer_bytes(65_536).send_buffer_bytes(32_768);
            let socket = UdpSocket::bind_with(anywhere(), &options).unwrap();
            let system = SockRef::from(&socket);
            assert!(system.broadcast().unwrap());
            assert_eq!(system.ttl_v4().unwrap(), 7);
            let (receive, send) = socket.buffer_sizes().unwrap();
            assert!((65_536..=131_072).contains(&receive) && (32_768..=65_536).contains(&send));
            assert_eq!(
                system.multicast_ttl_v4().unwrap(),
                1,
                "what nobody asked for is as the system has it"
            );
            assert!(system.multicast_loop_v4().unwrap());
            socket.set_ttl(9).unwrap();
            socket.set_multicast_ttl(3).unwrap();
            socket.set_multicast_loop(false).unwrap();
            socket.set_broadcast(false).unwrap();
            socket.set_multicast_interface(LOOPBACK).unwrap();
            assert_eq!((system.ttl_v4().unwrap(), system.multicast_ttl_v4().unwrap()), (9, 3));
            assert!(!system.multicast_loop_v4().unwrap() && !system.broadcast().unwrap());
            assert_eq!(system.multicast_if_v4().unwrap(), Ipv4Addr::LOCALHOST);

            let group = group(7);
            let sent = MulticastOptions::new(group).interface(LOOPBACK).ttl(5).local_port(0).bind().unwrap();
            assert_eq!(SockRef::from(&sent).multicast_ttl_v4().unwrap(), 5);
            let plain = MulticastOptions::new(group).interface(LOOPBACK).local_port(0).bind().unwrap();
            assert_eq!(SockRef::from(&plain).multicast_ttl_v4().unwrap(), 1);
        });
    });
}

// Not on Windows: it reads options of a descriptor.
#[cfg(unix)]
#[test]
fn a_socket_of_both_families_takes_the_options_of_both() {
    use socket2::SockRef;
    on_real_backends(|config| {
        check(config, async {
            let Ok(socket) = UdpSocket::bind_with("[::]:0".parse().unwrap(), &UdpOptions::new().ttl(7))
            else {
                return println!("NOT COVERED: sockets of IPv6, which this machine has not");
            };
            let system = SockRef::from(&socket);
            socket.set_multicast_ttl(3).unwrap();
            socket.set_multicast_loop(false).unwrap();
            socket.set_multicast_interface(Interface::Any).unwrap();
            assert_eq!((system.unicast_hops_v6().unwrap(), system.multicast_hops_v6().unwrap()), (7, 3));
            assert!(!system.multicast_loop_v6().unwrap() && !system.only_v6().unwrap());
            if cfg!(target_os = "linux") {
                assert_eq!((system.ttl_v4().unwrap(), system.multicast_ttl_v4().unwrap()), (7, 3));
            }
            let only = UdpOptions::new().only_v6();
            let only = UdpSocket::bind_with("[::]:0".parse().unwrap(), &only).unwrap();
            assert!(SockRef::from(&only).only_v6().unwrap());
        });
    });
}

/// Two members of a group of IPv6 on one interface, the second on another port, if a datagram gets from one to the other.
async fn members_v6(group: SocketAddr, interface: Interface) -> Option<(UdpSocket, UdpSocket)> {
    let options = MulticastOptions::new(group).interface(interface).ttl(0);
    let (one, sender) = (options.bind().ok()?, options.clone().local_port(0).bind().ok()?);
    sender.send_to("hello", group).await.ok()?;
    let datagram = timeout(Duration::from_millis(500), one.recv_from()).await.ok()?.ok()?;
    assert_eq!(&*datagram.lease, b"hello");
    Some((one, sender))
}

#[test]
fn a_group_of_ipv6_is_heard_on_its_interface_until_it_is_left() {
    on_real_backends(|config| {
        check(config, async {
            // Interface-local: it never leaves the machine, whatever the interface.
            let group = SocketAddr::new("ff01::4242".parse().unwrap(), group(8).port());
            for interface in (1..=16).map(Interface::Index) {
                let Some((one, sender)) = members_v6(group, interface).await else { continue };
                sender.set_multicast_loop(false).unwrap();
                sender.send_to("mute", group).await.unwrap();
                anabranch::sleep(Duration::from_millis(2)).await;
                sender.set_multicast_loop(true).unwrap();
                sender.send_to("loud", group).await.unwrap();
                assert_eq!(&*one.recv_from().await.unwrap().lease, b"loud");
                one.leave_multicast(group.ip(), interface).unwrap();
                assert!(one.leave_multicast(group.ip(), interface).is_err());
                return;
            }
            println!("NOT COVERED: multicast of IPv6, which no interface of this machine carries");
        });
    });
}

#[test]
fn a_broadcast_needs_leave_and_reaches_every_socket_of_the_port() {
    on_typical_backends(|config| {
        let simulated = peer::is_simulated(&config);
        check(config, async {
            let port = group(9).port();
            // The network of the loopback interface; a simulated network has only the one for all.
            let everybody: Ipv4Addr =
                if simulated { Ipv4Addr::BROADCAST } else { Ipv4Addr::new(127, 255, 255, 255) };
            let to = SocketAddr::from((everybody, port));
            let members = [UdpCast::broadcast(port, to).unwrap(), UdpCast::broadcast(port, to).unwrap()];
            let sender = UdpCast::broadcast(0, to).unwrap();
            sender.send("hello").await.unwrap();
            for member in &members {
                assert_eq!(&*member.recv().await.unwrap().lease, b"hello");
            }
            assert!(sender.leave().is_err() && sender.join().is_err());
            let plain = UdpNode::bind(SocketAddr::from(([0, 0, 0, 0], 0)), NodeOptions::new()).unwrap();
            plain.send_to("not allowed", to).await.unwrap();
            let refused = plain.recv().await.unwrap().unwrap_err();
            assert!(refused.is_send() && refused.peer() == Some(to), "{refused}");
        });
    });
}

#[test]
fn a_node_over_a_member_of_a_group_answers_its_senders() {
    on_typical_backends(|config| {
        check(config, async {
            let group = group(10);
            let node = UdpNode::over(member(group).into_socket(), NodeOptions::new()).unwrap();
            let asker = UdpCast::multicast(options(group).local_port(0)).unwrap();
            asker.send("who is there?").await.unwrap();
            let question = node.recv().await.unwrap().unwrap();
            node.send_to("me", question.from()).await.unwrap();
            // The asker is a member, too, but on another port.
            assert_eq!(&*asker.recv().await.unwrap().lease, b"me");
        });
    });
}

#[test]
fn a_port_is_shared_only_where_all_ask_for_it() {
    on_typical_backends(|config| {
        check(config, async {
            let bind = |address, options: UdpOptions| UdpSocket::bind_with(address, &options);
            let alone = bind(anywhere(), UdpOptions::new()).unwrap();
            let taken = bind(alone.local_addr().unwrap(), UdpOptions::new().share_port()).unwrap_err();
            assert_eq!(taken.kind(), ErrorKind::AddrInUse);
            let first = bind(anywhere(), UdpOptions::new().share_port()).unwrap();
            assert!(bind(first.local_addr().unwrap(), UdpOptions::new()).is_err());
            bind(first.local_addr().unwrap(), UdpOptions::new().share_port()).unwrap();
            assert!(bind(nobody_else(), UdpOptions::new()).is_err(), "an address of nobody");
        });
    });
    assert!(UdpSocket::bind_with(nobody(), &UdpOptions::new()).is_err(), "there is no shard");
}

/// An address of documentation, which no machine has.
fn nobody_else() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 1], 0))
}

#[test]
fn an_option_that_is_refused_is_named() {
    on_real_backends(|config: Config| {
        check(config, async {
            // No system takes a TTL of 0 for single peers.
            let error = UdpSocket::bind_with(anywhere(), &UdpOptions::new().ttl(0));
            let Err(error) = error else {
                return println!("NOT COVERED: an option that is refused; this system takes it");
            };
            let refused = error.get_ref().and_then(|inner| inner.downcast_ref::<OptionRefused>());
            assert_eq!(refused.map(OptionRefused::option), Some("ttl"), "{error}");
        });
    });
}

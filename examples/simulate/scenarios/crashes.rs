//! Requests while hosts crash and the network is cut, one way and both ways; once it is healed all are answered.
#![forbid(unsafe_code)]

use super::model::Choice;
use super::requests::add_hosts;
use anabranch::sim::{Builder, Faults, World};
use std::time::Duration;

pub(crate) fn build(seed: u64, faults: Faults) -> Builder {
    let mut choice = Choice::new(seed, "crashes");
    let (servers, clients) = (choice.within(1..3), choice.within(1..5));
    let mut builder = add_hosts(Builder::new().faults(faults), &mut choice, servers, clients);
    let mut healed = Duration::ZERO;
    for _ in 0..choice.within(1..8) {
        let at = Duration::from_millis(choice.within(1..3000));
        healed = healed.max(at + Duration::from_millis(choice.within(1..4000)));
        let (server, client) = (
            format!("server-{}", choice.within(0..servers)),
            format!("client-{}", choice.within(0..clients)),
        );
        let what = choice.within(0..5);
        builder = builder.at(at, move |world| trouble(world, what, &server, &client));
    }
    builder.at(healed, World::heal_all)
}

fn trouble(world: &World, what: u64, server: &str, client: &str) {
    match what {
        0 => world.partition(server, client),
        1 => world.partition_one_way(server, client),
        2 => world.partition_one_way(client, server),
        3 => world.crash(server),
        _ => world.crash(client),
    }
}

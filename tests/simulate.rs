//! The scenarios of the sweep program, a few seeds of each; `examples/simulate` runs as many as there is time for.
#![forbid(unsafe_code)]

#[path = "../examples/simulate/scenarios/mod.rs"]
mod scenarios;

use anabranch::sim::seeds;
use scenarios::{ALL, Level};

#[test]
fn every_scenario_has_its_own_name_and_a_line_about_it() {
    for scenario in ALL {
        assert!(!scenario.about.is_empty(), "{}", scenario.name);
        assert_eq!(ALL.iter().filter(|other| other.name == scenario.name).count(), 1);
    }
}

#[test]
fn every_scenario_holds_where_nothing_goes_wrong() {
    for scenario in ALL {
        for seed in seeds(0..6) {
            let run = scenario.builder(seed, Level::None).run();
            let report = run.unwrap_or_else(|failure| panic!("{}: {failure}", scenario.name));
            // What a scenario does to its world by itself is no fault.
            assert_eq!(report.faults().total(), 0, "{}", scenario.name);
        }
    }
}

#[test]
fn every_scenario_holds_for_some_seeds() {
    for scenario in ALL {
        for seed in seeds(0..24) {
            let run = scenario.builder(seed, Level::Rough).run();
            run.unwrap_or_else(|failure| panic!("{}: {failure}", scenario.name));
        }
    }
}

#[test]
fn every_scenario_holds_for_some_seeds_with_harsh_faults() {
    for scenario in ALL {
        for seed in seeds(0..12) {
            let run = scenario.builder(seed, Level::Harsh).run();
            run.unwrap_or_else(|failure| panic!("{}: {failure}", scenario.name));
        }
    }
}

#[test]
fn the_same_seed_is_the_same_run_in_every_scenario() {
    for scenario in ALL {
        for seed in seeds(0..12) {
            let run = || {
                let report = scenario.builder(seed, Level::Rough).run();
                let report = report.unwrap_or_else(|failure| panic!("{}: {failure}", scenario.name));
                (report.log_hash(), report.log_lines())
            };
            assert_eq!(run(), run(), "{} with seed {seed}", scenario.name);
        }
    }
}

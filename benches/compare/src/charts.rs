//! The charts.

use crate::canvas::{ALARM, Canvas, FAINT_INK, GRID, INK, Side, colour, is_ours, label};
use crate::results::{Cell, Results};
use crate::scenario::{AHEAD, Scenario};
use crate::servers::SERVERS;
use std::io;
use std::path::Path;

/// A chart that was drawn: its file and its title.
pub struct Chart {
    pub file: &'static str,
    pub title: &'static str,
}

/// The bare loops, of which the better one is what others are compared with.
pub const BARE: [&str; 2] = ["bare-uring", "bare-epoll"];

/// CPU per message of the better bare loop.
pub fn bare_cpu(results: &Results, scenario: &str) -> Option<f64> {
    let of = |server: &&str| results.cell(scenario, server)?.median("cpu_us");
    BARE.iter().filter_map(of).min_by(f64::total_cmp)
}

/// Draws every chart for which there are results.
pub fn draw_all(results: &Results, out: &Path) -> io::Result<Vec<Chart>> {
    let mut drawn = Vec::new();
    type Draw = fn(&Results, &Path) -> io::Result<bool>;
    let charts: [(&'static str, &'static str, Draw); 8] = [
        ("cpu.svg", "Server CPU per message against the better bare loop", cpu),
        ("latency.svg", "Latency, p50 to p99", latency),
        ("growth.svg", "CPU per message as connections grow", growth),
        ("fanout.svg", "Fan-out: deliveries per second of server CPU", fan_out),
        ("fanout-latency.svg", "Fan-out: latency, p50 to p99", fan_out_latency),
        ("timers.svg", "The cost of moving one of many armed timers", timers),
        ("memory.svg", "Memory per idle connection", memory),
        ("accept.svg", "CPU per accepted connection", accept),
    ];
    for (file, title, draw) in charts {
        let path = out.join(file);
        if draw(results, &path)? {
            drawn.push(Chart { file, title });
        } else {
            // An old chart would show other results than the tables.
            let _ = std::fs::remove_file(path);
        }
    }
    Ok(drawn)
}

/// The servers that have results, in the order of the tables.
fn present(results: &Results) -> Vec<&'static str> {
    let has = |name: &str| results.cells.iter().any(|cell| cell.server == name);
    SERVERS.iter().map(|server| server.name).filter(|name| has(name)).collect()
}

fn title_of(scenario: &str) -> String {
    let Ok(parsed) = scenario.parse::<Scenario>() else { return scenario.to_owned() };
    let many = |n: usize, thing: &str| format!("{n} {thing}{}", if n == 1 { "" } else { "s" });
    match parsed {
        Scenario::Echo { connections, size, outstanding, spin } => {
            let size = if size >= 1024 { format!("{} KiB", size / 1024) } else { format!("{size} B") };
            let at_once = if outstanding > 1 { format!(", {outstanding} at once") } else { String::new() };
            let awake = if spin { ", client awake" } else { "" };
            format!("TCP, {}, {size}{at_once}{awake}", many(connections, "connection"))
        }
        Scenario::Tls { connections, size, outstanding } => {
            format!("TLS, {}, {size} B, {outstanding} on the way", many(connections, "connection"))
        }
        Scenario::Udp { sockets, .. } => format!("UDP, {}, 32 B", many(sockets, "client")),
        Scenario::BulkUdp { sockets } => format!("UDP bulk, {}, 1200 B", many(sockets, "client")),
        Scenario::FanOut { subscribers, ahead } => {
            format!("fan-out, 1 to {subscribers}, 32 B, {ahead} ahead")
        }
        Scenario::Churn { parallel } => format!("connect, echo, close; {parallel} at once"),
        other => other.to_string(),
    }
}

const CPU_PANELS: [&str; 9] = [
    "c1-s32-k1-spin",
    "c100-s32-k1",
    "c1000-s32-k1",
    "c100-s32-k16",
    "c100-s16384-k16",
    "accept100",
    "udp100",
    "bulk-udp4",
    "fanout100",
];

const ROW: i32 = 21;
const PANEL_WIDTH: i32 = 420;
const NAMES_WIDTH: i32 = 168;

/// A page of panels, three in a row; `draw` gets a panel's name, place and the rows' names.
fn panels(
    path: &Path,
    head: (&str, &str),
    names: &[&str],
    servers: &[&str],
    draw: impl Fn(&Canvas<'_>, &str, (i32, i32)) -> io::Result<()>,
) -> io::Result<bool> {
    if names.is_empty() {
        return Ok(false);
    }
    let columns = names.len().min(3) as i32;
    let panel_height = 62 + ROW * servers.len() as i32;
    let rows = (names.len() as i32 + columns - 1) / columns;
    // A page of one panel is wide enough for its title and its legend.
    let width = (24 + PANEL_WIDTH * columns).max(880);
    let canvas = Canvas::new(path, width, 118 + panel_height * rows)?;
    canvas.head(head.0, head.1)?;
    canvas.legend(84, servers)?;
    for (at, name) in names.iter().enumerate() {
        let (column, row) = (at as i32 % columns, at as i32 / columns);
        draw(&canvas, name, (24 + column * PANEL_WIDTH, 112 + row * panel_height))?;
    }
    canvas.finish()?;
    Ok(true)
}

/// The names of the rows of a panel.
fn row_name(canvas: &Canvas<'_>, server: &str, x: i32, y: i32) -> io::Result<()> {
    let at = (x + NAMES_WIDTH - 8, y + ROW / 2 - 1);
    if is_ours(server) {
        canvas.strong(at, label(server), 12, INK, Side::Right)
    } else {
        canvas.text(at, label(server), 12, INK, Side::Right)
    }
}

fn cpu(results: &Results, path: &Path) -> io::Result<bool> {
    let servers = present(results);
    let names: Vec<&str> =
        CPU_PANELS.iter().copied().filter(|name| bare_cpu(results, name).is_some()).collect();
    let head = (
        "Server CPU per message, against the better bare loop (1.00)",
        "Shorter is better. The number behind a bar: the ratio, and microseconds of CPU per message, kernel work included.",
    );
    panels(path, head, &names, &servers, |canvas, name, place| ratios(canvas, results, name, &servers, place))
}

/// Ratios beyond this are cut.
const RATIO_MAX: f64 = 2.6;

fn ratios(
    canvas: &Canvas<'_>,
    results: &Results,
    scenario: &str,
    servers: &[&str],
    (x, y): (i32, i32),
) -> io::Result<()> {
    let Some(bare) = bare_cpu(results, scenario) else { return Ok(()) };
    canvas.strong((x + NAMES_WIDTH, y + 10), &title_of(scenario), 13, INK, Side::Left)?;
    let (left, top) = (x + NAMES_WIDTH, y + 24);
    // Room for the numbers behind the longest bar.
    let width = PANEL_WIDTH - NAMES_WIDTH - 112;
    let ratio = |server: &str| results.cell(scenario, server)?.median("cpu_us").map(|cpu| (cpu / bare, cpu));
    let longest =
        servers.iter().filter_map(|server| ratio(server)).map(|(ratio, _)| ratio).fold(1.25, f64::max);
    let scale = f64::from(width) / longest.min(RATIO_MAX);
    let one = left + scale as i32;
    for (row, server) in servers.iter().enumerate() {
        let y = top + row as i32 * ROW;
        row_name(canvas, server, x, y)?;
        let middle = y + ROW / 2 - 1;
        match ratio(server) {
            Some((ratio, cpu)) => {
                let length = (ratio.min(RATIO_MAX) * scale) as i32;
                canvas.bar(left, y + 2, length, ROW - 6, colour(server))?;
                let cut = if ratio > RATIO_MAX { "» " } else { "" };
                let text = format!("{cut}{ratio:.2} · {} µs", short(cpu));
                // Behind the line as well, so that the two do not overlap.
                let at = left + length.max(scale as i32) + 6;
                canvas.text((at, middle), &text, 12, INK, Side::Left)?;
            }
            None => absent(canvas, results, scenario, server, (one + 6, middle))?,
        }
    }
    canvas.path(vec![(one, top - 3), (one, top + ROW * servers.len() as i32)], FAINT_INK, 1)
}

/// Says why there is no bar.
fn absent(
    canvas: &Canvas<'_>,
    results: &Results,
    scenario: &str,
    server: &str,
    at: (i32, i32),
) -> io::Result<()> {
    let failed = results.cell(scenario, server).is_some_and(|cell| !cell.failures.is_empty());
    let disturbed = results.cell(scenario, server).is_some_and(Cell::is_disturbed);
    let (text, ink) = match (failed, disturbed) {
        (true, _) => ("FAILED", ALARM),
        (false, true) => ("disturbed", FAINT_INK),
        (false, false) => ("not available", FAINT_INK),
    };
    canvas.text(at, text, 12, ink, Side::Left)
}

/// A number with three significant digits.
pub fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 1e6 => format!("{:.2}M", value / 1e6),
        v if v >= 1e5 => format!("{:.0}k", value / 1e3),
        v if v >= 1e4 => format!("{:.1}k", value / 1e3),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn latency(results: &Results, path: &Path) -> io::Result<bool> {
    let servers = present(results);
    let names = ["c1-s32-k1-spin", "c100-s32-k1", "c1000-s32-k1", "c100-s16384-k16", "udp100", "fanout100"];
    let has = |name: &&str| servers.iter().any(|server| of(results, name, server, "p99_us").is_some());
    let names: Vec<&str> = names.into_iter().filter(has).collect();
    let head = (
        "Latency as the client sees it: median (dot) to 99th percentile (end of the bar)",
        "Further left is better; logarithmic. The server is loaded to its limit, so this is mostly time in queues.",
    );
    panels(path, head, &names, &servers, |canvas, name, place| ranges(canvas, results, name, &servers, place))
}

fn of(results: &Results, scenario: &str, server: &str, metric: &str) -> Option<f64> {
    results.cell(scenario, server)?.median(metric)
}

fn ranges(
    canvas: &Canvas<'_>,
    results: &Results,
    scenario: &str,
    servers: &[&str],
    (x, y): (i32, i32),
) -> io::Result<()> {
    canvas.strong((x + NAMES_WIDTH, y + 10), &title_of(scenario), 13, INK, Side::Left)?;
    let (left, top, width) = (x + NAMES_WIDTH, y + 24, f64::from(PANEL_WIDTH - NAMES_WIDTH - 128));
    let range = |server: &str| {
        Some((of(results, scenario, server, "p50_us")?, of(results, scenario, server, "p99_us")?))
    };
    let all: Vec<(f64, f64)> = servers.iter().filter_map(|server| range(server)).collect();
    let least = all.iter().map(|(p50, _)| *p50).fold(f64::MAX, f64::min) / 1.2;
    let most = all.iter().map(|(_, p99)| *p99).fold(0.0, f64::max).max(least * 4.0);
    let place = |value: f64| left + ((value / least).ln() / (most / least).ln() * width) as i32;
    for (row, server) in servers.iter().enumerate() {
        let y = top + row as i32 * ROW;
        let middle = y + ROW / 2 - 1;
        row_name(canvas, server, x, y)?;
        canvas.path(vec![(left, middle), (left + width as i32, middle)], GRID, 1)?;
        match range(server) {
            Some((p50, p99)) => {
                let (from, to) = (place(p50), place(p99));
                canvas.bar(from, middle - 3, to - from, 6, colour(server))?;
                canvas.dot((from, middle), 5, colour(server))?;
                let text = if p99 < 1e4 {
                    format!("{} – {} µs", short(p50), short(p99))
                } else {
                    format!("{} – {} ms", short(p50 / 1e3), short(p99 / 1e3))
                };
                canvas.text((to + 8, middle), &text, 12, INK, Side::Left)?;
            }
            None => absent(canvas, results, scenario, server, (left + 4, middle))?,
        }
    }
    Ok(())
}

struct Series<'a> {
    server: &'a str,
    points: Vec<(f64, f64)>,
}

/// The series of a metric over the scenarios of one kind; `x` tells which are, and where they stand.
fn series<'a>(
    results: &Results,
    servers: &[&'a str],
    x: impl Fn(Scenario) -> Option<usize>,
    value: impl Fn(&str, &str) -> Option<f64>,
) -> Vec<Series<'a>> {
    let mut places: Vec<(usize, &str)> = results
        .scenarios()
        .into_iter()
        .filter_map(|name| Some((name.parse().ok().and_then(&x)?, name)))
        .collect();
    places.sort_unstable();
    let points = |server: &str| -> Vec<(f64, f64)> {
        places.iter().filter_map(|(x, name)| Some((*x as f64, value(name, server)?))).collect()
    };
    let of_server = |server: &&'a str| Series { server, points: points(server) };
    servers.iter().map(of_server).filter(|series| series.points.len() > 1).collect()
}

fn growth(results: &Results, path: &Path) -> io::Result<bool> {
    let servers = present(results);
    let x = |scenario| match scenario {
        Scenario::Echo { connections, size: 32, outstanding: 1, spin: false } if connections > 1 => {
            Some(connections)
        }
        _ => None,
    };
    let all = series(results, &servers, x, |scenario, server| of(results, scenario, server, "cpu_us"));
    let head = (
        "Server CPU per message as the number of active connections grows",
        "TCP echo, 32-byte messages, one outstanding on each connection. Lower is better.",
    );
    lines(path, head, ("active connections", "µs of server CPU per message"), &all, false)
}

fn subscribers(scenario: Scenario) -> Option<usize> {
    match scenario {
        Scenario::FanOut { subscribers, ahead: AHEAD } => Some(subscribers),
        _ => None,
    }
}

fn fan_out(results: &Results, path: &Path) -> io::Result<bool> {
    let per_second =
        |scenario: &str, server: &str| of(results, scenario, server, "cpu_us").map(|cpu| 1.0 / cpu);
    let all = series(results, &present(results), subscribers, per_second);
    let head = (
        "Fan-out: messages delivered per second of server CPU",
        "One publisher, 32-byte messages, each to all subscribers; 16 messages on the way. Higher is better.",
    );
    lines(path, head, ("subscribers", "million deliveries per CPU second"), &all, false)
}

fn fan_out_latency(results: &Results, path: &Path) -> io::Result<bool> {
    let servers = present(results);
    let is_fan_out = |name: &&str| name.parse().ok().and_then(subscribers).is_some();
    let names: Vec<&str> = results.scenarios().into_iter().filter(is_fan_out).collect();
    let head = (
        "Fan-out: time from publish to delivery, median (dot) to 99th percentile (end of the bar)",
        "Further left is better; logarithmic. 16 messages on the way to all subscribers, so this is mostly time in queues.",
    );
    panels(path, head, &names, &servers, |canvas, name, place| ranges(canvas, results, name, &servers, place))
}

fn timers(results: &Results, path: &Path) -> io::Result<bool> {
    let x = |scenario| match scenario {
        Scenario::Timers { armed } => Some(armed),
        _ => None,
    };
    let nanoseconds =
        |scenario: &str, server: &str| of(results, scenario, server, "cpu_us").map(|cpu| cpu * 1e3);
    let all = series(results, &present(results), x, nanoseconds);
    let head = (
        "Moving one of many armed timers",
        "A random one of the timers of one thread gets a new deadline, as a server does at each message. Lower is better.",
    );
    lines(path, head, ("armed timers", "ns of CPU per reset (logarithmic)"), &all, true)
}

const LINES: (i32, i32) = (1180, 620);
/// The edges of the plot: left, top, right, bottom.
const PLOT: (i32, i32, i32, i32) = (84, 96, 880, 560);

/// Lines over a logarithmic axis, each with its name at its end.
fn lines(
    path: &Path,
    head: (&str, &str),
    axes: (&str, &str),
    all: &[Series<'_>],
    log: bool,
) -> io::Result<bool> {
    if all.is_empty() {
        return Ok(false);
    }
    let canvas = Canvas::new(path, LINES.0, LINES.1)?;
    canvas.head(head.0, head.1)?;
    let points = || all.iter().flat_map(|series| series.points.iter().copied());
    let least = |pick: fn((f64, f64)) -> f64| points().map(pick).fold(f64::MAX, f64::min);
    let most = |pick: fn((f64, f64)) -> f64| points().map(pick).fold(0.0, f64::max);
    let (x0, x1) = (least(|point| point.0), most(|point| point.0));
    let ticks = if log {
        decades(least(|point| point.1), most(|point| point.1))
    } else {
        steps(least(|point| point.1), most(|point| point.1))
    };
    let (y0, y1) = (ticks[0], ticks[ticks.len() - 1]);
    let (left, top, right, bottom) = PLOT;
    let part = |value: f64, from: f64, to: f64, log: bool| {
        if log { (value / from).ln() / (to / from).ln() } else { (value - from) / (to - from) }
    };
    let x = |value: f64| left + 16 + (part(value, x0, x1, true) * f64::from(right - left - 32)) as i32;
    let y = |value: f64| bottom - (part(value, y0, y1, log) * f64::from(bottom - top)) as i32;
    for tick in &ticks {
        canvas.path(vec![(left, y(*tick)), (right, y(*tick))], GRID, 1)?;
        canvas.text((left - 10, y(*tick)), &tick_text(*tick), 13, FAINT_INK, Side::Right)?;
    }
    let mut places: Vec<f64> = points().map(|point| point.0).collect();
    places.sort_by(f64::total_cmp);
    places.dedup();
    for place in places {
        canvas.path(vec![(x(place), bottom), (x(place), bottom + 5)], FAINT_INK, 1)?;
        canvas.text((x(place), bottom + 18), &grouped(place), 13, FAINT_INK, Side::Middle)?;
    }
    canvas.text(((left + right) / 2, bottom + 42), axes.0, 14, INK, Side::Middle)?;
    let cut = if !log && y0 > 0.0 { " (the axis does not begin at zero)" } else { "" };
    canvas.text((24, top - 18), &format!("{}{cut}", axes.1), 13, INK, Side::Left)?;
    // Ours on top of the others.
    let order = |ours: bool| all.iter().filter(move |series| is_ours(series.server) == ours);
    for series in order(false).chain(order(true)) {
        let places: Vec<(i32, i32)> = series.points.iter().map(|point| (x(point.0), y(point.1))).collect();
        let (width, radius) = if is_ours(series.server) { (3, 5) } else { (2, 3) };
        canvas.path(places.clone(), colour(series.server), width)?;
        places.iter().try_for_each(|place| canvas.dot(*place, radius, colour(series.server)))?;
    }
    names_at_ends(&canvas, all, x, y)?;
    canvas.finish()?;
    Ok(true)
}

/// Writes each name beside the end of its line, apart from the others.
fn names_at_ends(
    canvas: &Canvas<'_>,
    all: &[Series<'_>],
    x: impl Fn(f64) -> i32,
    y: impl Fn(f64) -> i32,
) -> io::Result<()> {
    const APART: i32 = 19;
    let mut ends: Vec<(i32, i32, &Series<'_>)> = all
        .iter()
        .filter_map(|series| series.points.last().map(|(at, value)| (y(*value), x(*at), series)))
        .collect();
    ends.sort_by_key(|end| end.0);
    let mut heights: Vec<i32> = ends.iter().map(|end| end.0).collect();
    for at in 1..heights.len() {
        heights[at] = heights[at].max(heights[at - 1] + APART);
    }
    // What was pushed below the plot moves up again.
    if let Some(last) = heights.last_mut() {
        *last = (*last).min(PLOT.3);
    }
    for at in (1..heights.len()).rev() {
        heights[at - 1] = heights[at - 1].min(heights[at] - APART);
    }
    for ((end, from, series), height) in ends.iter().zip(heights) {
        let ink = colour(series.server);
        canvas.path(vec![(*from + 6, *end), (PLOT.2 + 12, height)], ink, 1)?;
        let value = series.points.last().map_or(String::new(), |(_, value)| short(*value));
        let text = format!("{} · {value}", label(series.server));
        canvas.bar(PLOT.2 + 14, height - 5, 10, 10, ink)?;
        let at = (PLOT.2 + 30, height);
        if is_ours(series.server) {
            canvas.strong(at, &text, 13, INK, Side::Left)?;
        } else {
            canvas.text(at, &text, 13, INK, Side::Left)?;
        }
    }
    Ok(())
}

/// Places for horizontal lines from zero to above `most`; from below `least` where all values lie close together.
fn steps(least: f64, most: f64) -> Vec<f64> {
    let base = if least > most * 0.4 { least * 0.9 } else { 0.0 };
    let rough = (most - base).max(1e-9) / 5.0;
    let power = 10_f64.powf(rough.log10().floor());
    let factors = [1.0, 2.0, 2.5, 5.0, 10.0];
    let step = factors.into_iter().map(|factor| factor * power).find(|step| *step >= rough).unwrap_or(rough);
    let (first, last) = ((base / step).floor() as usize, (most / step).ceil() as usize);
    (first..=last.max(first + 1)).map(|n| n as f64 * step).collect()
}

/// The same for a logarithmic axis: 1, 2 and 5 of each decade, from below `least` to above `most`.
fn decades(least: f64, most: f64) -> Vec<f64> {
    let (from, to) = (least.log10().floor() as i32, most.log10().ceil() as i32);
    let all: Vec<f64> =
        (from..=to).flat_map(|power| [1.0, 2.0, 5.0].map(|factor| factor * 10_f64.powi(power))).collect();
    let first = all.iter().rposition(|tick| *tick <= least).unwrap_or(0);
    let last = all.iter().position(|tick| *tick >= most).unwrap_or(all.len() - 1);
    all[first..=last.max(first + 1)].to_vec()
}

fn tick_text(value: f64) -> String {
    if value >= 10_000.0 {
        format!("{}k", value / 1e3)
    } else {
        // Steps are round numbers, but sums of binary fractions are not.
        format!("{}", (value * 1e6).round() / 1e6)
    }
}

/// A whole number with its thousands apart.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

fn memory(results: &Results, path: &Path) -> io::Result<bool> {
    let servers = present(results);
    let has = |name: &&str| name.starts_with("idle");
    let names: Vec<&str> = results.scenarios().into_iter().filter(has).collect();
    let head = (
        "Resident user memory of the server per idle connection",
        "Bytes: as opened (pale), and after one message each (solid). The kernel's sockets come on top, equally. Shorter is better.",
    );
    panels(path, head, &names, &servers, |canvas, name, place| pairs(canvas, results, name, &servers, place))
}

fn pairs(
    canvas: &Canvas<'_>,
    results: &Results,
    scenario: &str,
    servers: &[&str],
    (x, y): (i32, i32),
) -> io::Result<()> {
    let connections = scenario.trim_start_matches("idle").parse().unwrap_or(0.0);
    canvas.strong(
        (x + NAMES_WIDTH, y + 10),
        &format!("{} connections", grouped(connections)),
        13,
        INK,
        Side::Left,
    )?;
    let (left, top, width) = (x + NAMES_WIDTH, y + 24, f64::from(PANEL_WIDTH - NAMES_WIDTH - 118));
    let pair = |server: &str| {
        let quiet = of(results, scenario, server, "bytes_per_connection")?;
        Some((quiet, of(results, scenario, server, "bytes_per_connection_touched")?))
    };
    let most = servers.iter().filter_map(|server| pair(server)).map(|(a, b)| a.max(b)).fold(1.0, f64::max);
    for (row, server) in servers.iter().enumerate() {
        let y = top + row as i32 * ROW;
        let middle = y + ROW / 2 - 1;
        row_name(canvas, server, x, y)?;
        let Some((quiet, touched)) = pair(server) else {
            absent(canvas, results, scenario, server, (left + 4, middle))?;
            continue;
        };
        let length = |bytes: f64| (bytes / most * width) as i32;
        canvas.bar(left, y + 1, length(quiet), 7, pale(colour(server)))?;
        canvas.bar(left, y + 9, length(touched), 7, colour(server))?;
        let text = format!("{} / {}", grouped(quiet), grouped(touched));
        canvas.text((left + length(quiet.max(touched)) + 6, middle), &text, 12, INK, Side::Left)?;
    }
    Ok(())
}

fn pale(colour: plotters::style::RGBColor) -> plotters::style::RGBColor {
    let mix = |part: u8| ((u16::from(part) + 2 * 255) / 3) as u8;
    plotters::style::RGBColor(mix(colour.0), mix(colour.1), mix(colour.2))
}

fn accept(results: &Results, path: &Path) -> io::Result<bool> {
    let servers = present(results);
    let has = |name: &&str| name.starts_with("accept") && bare_cpu(results, name).is_some();
    let names: Vec<&str> = results.scenarios().into_iter().filter(has).collect();
    let head = (
        "Server CPU per connection: accept, 32 bytes there and back, close",
        "Against the better bare loop (1.00). Shorter is better; the kernel's own work is most of it.",
    );
    panels(path, head, &names, &servers, |canvas, name, place| ratios(canvas, results, name, &servers, place))
}

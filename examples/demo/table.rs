//! The table.

use crate::Measured;

const HEAD: [&str; 9] = [
    "backend",
    "connections",
    "messages/s",
    "MiB/s",
    "p50 µs",
    "p99 µs",
    "p99.9 µs",
    "server CPU µs/message",
    "errors",
];

/// A line per backend; MiB/s are those of one direction.
pub(crate) fn render(all: &[Measured]) -> String {
    let mut lines = vec![HEAD.map(str::to_owned)];
    lines.extend(all.iter().map(line));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    let joined = |cells: &[String]| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}")).collect();
        format!("| {} |", padded.join(" | "))
    };
    let mut text: Vec<String> = lines.iter().map(|line| joined(line)).collect();
    text.insert(1, joined(&rule));
    text.join("\n")
}

fn line(measured: &Measured) -> [String; 9] {
    let messages = measured.tally.messages.max(1);
    let cpu = measured.cpu.map(|cpu| format!("{:.2}", cpu.as_secs_f64() * 1e6 / messages as f64));
    [
        measured.backend.to_string(),
        measured.conns.to_string(),
        grouped(measured.messages_per_second() as u64),
        format!("{:.1}", measured.mebibytes_per_second()),
        format!("{:.0}", measured.latency_us(0.5)),
        format!("{:.0}", measured.latency_us(0.99)),
        format!("{:.0}", measured.latency_us(0.999)),
        cpu.unwrap_or_else(|| "-".to_owned()),
        measured.tally.error_count.to_string(),
    ]
}

/// A number with a space between groups of three digits.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

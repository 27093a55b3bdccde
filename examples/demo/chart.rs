//! The chart: throughput over time above, latency over percentiles below, a line per backend.

use crate::{Flags, Measured, table};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::fmt::Display;
use std::io;
use std::path::Path;

const SIZE: (u32, u32) = (1000, 800);
const COLOURS: [RGBColor; 2] = [RGBColor(0, 92, 175), RGBColor(214, 96, 0)];
/// Nines of the last percentile shown: 99.99 %.
const NINES_MAX: f64 = 4.0;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Writes the chart as SVG.
pub(crate) fn write(path: &Path, flags: &Flags, all: &[Measured]) -> io::Result<()> {
    let mut text = String::new();
    draw(&mut text, flags, all)?;
    std::fs::write(path, text)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display())))
}

fn failed(error: impl Display) -> io::Error {
    io::Error::other(format!("cannot draw the chart: {error}"))
}

fn draw(text: &mut String, flags: &Flags, all: &[Measured]) -> io::Result<()> {
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    let title = format!(
        "anabranch: TCP echo over loopback, {} connections, {} bytes, pipeline of {}",
        flags.conns, flags.size, flags.pipeline
    );
    let root = root.margin(12, 4, 0, 0).titled(&title, ("sans-serif", 24)).map_err(failed)?;
    let (upper, lower) = root.split_vertically(50.percent_height());
    throughput(&upper, all)?;
    latency(&lower, all)?;
    root.present().map_err(failed)
}

fn throughput(area: &Area<'_>, all: &[Measured]) -> io::Result<()> {
    let points = || all.iter().flat_map(|measured| &measured.samples);
    let end = points().map(|point| point.0).fold(0.1, f64::max);
    let top = points().map(|point| point.1).fold(1.0, f64::max) * 1.3;
    let mut chart = ChartBuilder::on(area)
        .caption("Throughput over time", ("sans-serif", 18))
        .margin(12)
        .margin_right(36)
        .x_label_area_size(44)
        .y_label_area_size(96)
        .build_cartesian_2d(0.0..end, 0.0..top)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_desc("time since the start of the run [s]")
        .y_desc("messages per second")
        .y_label_formatter(&|value| table::grouped(*value as u64))
        .label_style(("sans-serif", 14))
        .light_line_style(TRANSPARENT)
        .draw()
        .map_err(failed)?;
    for (measured, colour) in all.iter().zip(COLOURS) {
        let rate = table::grouped(measured.messages_per_second() as u64);
        let label =
            format!("{}: {rate} messages/s, {:.1} MiB/s", measured.backend, measured.mebibytes_per_second());
        chart
            .draw_series(LineSeries::new(measured.samples.iter().copied(), colour.stroke_width(2)))
            .map_err(failed)?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(3)));
    }
    legend(&mut chart, SeriesLabelPosition::UpperRight)
}

fn latency(area: &Area<'_>, all: &[Measured]) -> io::Result<()> {
    let (low, high) = (|m: &Measured| m.latency_us(0.0), |m: &Measured| m.latency_us(percentile(NINES_MAX)));
    let bottom = all.iter().map(low).fold(f64::MAX, f64::min).clamp(0.1, 1e6);
    let top = all.iter().map(high).fold(bottom, f64::max) * 2.0;
    let mut chart = ChartBuilder::on(area)
        .caption("Latency of a message, from its write to the return of its last byte", ("sans-serif", 18))
        .margin(12)
        .margin_right(36)
        .x_label_area_size(44)
        .y_label_area_size(96)
        .build_cartesian_2d(0.0..NINES_MAX, (bottom..top).log_scale())
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_desc("percentile [%]")
        .y_desc("latency [µs]")
        .x_labels(5)
        .x_label_formatter(&|nines| format!("{}", (percentile(*nines) * 1e6).round() / 1e4))
        .y_label_formatter(&|value| table::grouped(value.round() as u64))
        .label_style(("sans-serif", 14))
        .light_line_style(TRANSPARENT)
        .draw()
        .map_err(failed)?;
    for (measured, colour) in all.iter().zip(COLOURS) {
        let label = format!(
            "{}: p50 {:.0} µs, p99 {:.0} µs, p99.9 {:.0} µs",
            measured.backend,
            measured.latency_us(0.5),
            measured.latency_us(0.99),
            measured.latency_us(0.999)
        );
        let steps = (0..=200).map(|step| f64::from(step) * NINES_MAX / 200.0);
        let points = steps.map(|nines| (nines, measured.latency_us(percentile(nines)).max(bottom)));
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))
            .map_err(failed)?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(3)));
    }
    legend(&mut chart, SeriesLabelPosition::LowerRight)
}

/// The part of all messages that a number of nines means: 2 is 99 %.
fn percentile(nines: f64) -> f64 {
    1.0 - 10_f64.powf(-nines)
}

fn legend<'a, X: Ranged<ValueType = f64>, Y: Ranged<ValueType = f64>>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>,
    position: SeriesLabelPosition,
) -> io::Result<()> {
    chart
        .configure_series_labels()
        .position(position)
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.4))
        .label_font(("sans-serif", 15))
        .draw()
        .map_err(failed)
}

//! A page to draw on, in pixels, and the colours of the servers.

use crate::servers::{self, Group};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::io;
use std::path::Path;

pub const INK: RGBColor = RGBColor(31, 35, 40);
pub const FAINT_INK: RGBColor = RGBColor(101, 109, 118);
pub const GRID: RGBColor = RGBColor(225, 228, 232);
pub const ALARM: RGBColor = RGBColor(190, 20, 40);

/// Peers are muted, bare loops are grey, and ours is what stands out.
pub fn colour(server: &str) -> RGBColor {
    match server {
        "bare-uring" => RGBColor(120, 126, 135),
        "bare-epoll" => RGBColor(176, 181, 188),
        "anabranch" => RGBColor(214, 64, 14),
        "anabranch-completion" => RGBColor(143, 34, 0),
        "anabranch-readiness" => RGBColor(245, 146, 80),
        "anabranch-completion-readiness" => RGBColor(205, 120, 85),
        "anabranch-server" => RGBColor(190, 88, 120),
        "anabranch-server-readiness" => RGBColor(224, 150, 170),
        "tokio" => RGBColor(118, 148, 186),
        "compio" => RGBColor(130, 172, 140),
        "monoio" => RGBColor(165, 144, 190),
        "glommio" => RGBColor(186, 170, 116),
        "mio" => RGBColor(124, 174, 182),
        _ => RGBColor(190, 150, 160),
    }
}

/// The name of a server on charts.
pub fn label(server: &str) -> &str {
    match server {
        "bare-uring" => "bare io_uring",
        "bare-epoll" => "bare epoll",
        "anabranch-completion" => "anabranch completion",
        "anabranch-readiness" => "anabranch readiness",
        "anabranch-completion-readiness" => "anabranch compl. readiness",
        "anabranch-server" => "anabranch server",
        "anabranch-server-readiness" => "anabranch server readiness",
        "asio" => "Asio (C++)",
        other => other,
    }
}

pub fn is_ours(server: &str) -> bool {
    servers::find(server).is_some_and(|server| server.group == Group::Ours)
}

/// Where a text stands from its place on.
#[derive(Clone, Copy)]
pub enum Side {
    Left,
    Middle,
    Right,
}

pub struct Canvas<'a> {
    area: DrawingArea<SVGBackend<'a>, plotters::coord::Shift>,
}

fn broken(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(error.to_string())
}

impl<'a> Canvas<'a> {
    pub fn new(path: &'a Path, width: i32, height: i32) -> io::Result<Canvas<'a>> {
        let area = SVGBackend::new(path, (width as u32, height as u32)).into_drawing_area();
        area.fill(&WHITE).map_err(broken)?;
        Ok(Canvas { area })
    }

    pub fn bar(&self, x: i32, y: i32, width: i32, height: i32, colour: RGBColor) -> io::Result<()> {
        let corners = [(x, y), (x + width.max(1), y + height)];
        self.area.draw(&Rectangle::new(corners, colour.filled())).map_err(broken)
    }

    pub fn path(&self, points: Vec<(i32, i32)>, colour: RGBColor, width: u32) -> io::Result<()> {
        self.area.draw(&PathElement::new(points, colour.stroke_width(width))).map_err(broken)
    }

    pub fn dot(&self, at: (i32, i32), radius: i32, colour: RGBColor) -> io::Result<()> {
        self.area.draw(&Circle::new(at, radius, colour.filled())).map_err(broken)
    }

    /// Text, centred vertically on its place.
    pub fn text(
        &self,
        at: (i32, i32),
        text: &str,
        size: i32,
        colour: RGBColor,
        side: Side,
    ) -> io::Result<()> {
        self.styled(at, text, size, colour, side, FontStyle::Normal)
    }

    pub fn strong(
        &self,
        at: (i32, i32),
        text: &str,
        size: i32,
        colour: RGBColor,
        side: Side,
    ) -> io::Result<()> {
        self.styled(at, text, size, colour, side, FontStyle::Bold)
    }

    fn styled(
        &self,
        at: (i32, i32),
        text: &str,
        size: i32,
        colour: RGBColor,
        side: Side,
        style: FontStyle,
    ) -> io::Result<()> {
        let horizontal = match side {
            Side::Left => HPos::Left,
            Side::Middle => HPos::Center,
            Side::Right => HPos::Right,
        };
        let font = FontDesc::new(FontFamily::SansSerif, f64::from(size), style);
        let style = TextStyle::from(font).color(&colour).pos(Pos::new(horizontal, VPos::Center));
        self.area.draw(&Text::new(text.to_owned(), at, style)).map_err(broken)
    }

    /// Title and subtitle of a page.
    pub fn head(&self, title: &str, subtitle: &str) -> io::Result<()> {
        self.strong((24, 30), title, 22, INK, Side::Left)?;
        self.text((24, 56), subtitle, 14, FAINT_INK, Side::Left)
    }

    /// What the colours mean, in one row.
    pub fn legend(&self, y: i32, servers: &[&str]) -> io::Result<()> {
        let mut x = 24;
        let groups = [
            ("anabranch", "anabranch on io_uring"),
            ("anabranch-readiness", "anabranch on epoll (readiness backend)"),
            ("bare-uring", "bare loops, no runtime"),
            ("tokio", "other runtimes"),
        ];
        for (server, meaning) in groups.iter().filter(|(server, _)| servers.contains(server)) {
            self.bar(x, y - 6, 12, 12, colour(server))?;
            self.text((x + 18, y), meaning, 13, INK, Side::Left)?;
            x += 50 + meaning.len() as i32 * 7;
        }
        Ok(())
    }

    pub fn finish(&self) -> io::Result<()> {
        self.area.present().map_err(broken)
    }
}

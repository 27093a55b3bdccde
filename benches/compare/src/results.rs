//! Raw results, as they are kept so that tables and charts can be drawn again.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

/// What one run gave, by name.
pub type Metrics = BTreeMap<String, f64>;

/// Everything of one measurement.
#[derive(Serialize, Deserialize, Default, Clone, Debug)]
pub struct Results {
    /// Facts about machine and run, by name.
    pub facts: BTreeMap<String, String>,
    pub cells: Vec<Cell>,
}

/// One server in one scenario.
#[derive(Serialize, Deserialize, Default, Clone, Debug)]
pub struct Cell {
    pub scenario: String,
    pub server: String,
    pub runs: Vec<Metrics>,
    /// Why runs failed.
    pub failures: Vec<String>,
    /// Why it was not tried.
    pub missing: Option<String>,
    /// System calls per message, from a run of its own.
    pub calls: Option<f64>,
}

/// Whether other processes took the cores while it was measured.
pub fn is_disturbed(run: &Metrics) -> bool {
    run.get("disturbed").is_some_and(|disturbed| *disturbed > 0.0)
}

impl Cell {
    /// Whether other processes took the cores in every run.
    pub fn is_disturbed(&self) -> bool {
        !self.runs.is_empty() && self.runs.iter().all(is_disturbed)
    }

    /// The median over the runs that were not disturbed, if none failed.
    pub fn median(&self, metric: &str) -> Option<f64> {
        if !self.failures.is_empty() {
            return None;
        }
        let mut values: Vec<f64> = self
            .runs
            .iter()
            .filter(|run| !is_disturbed(run))
            .filter_map(|run| run.get(metric).copied())
            .collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        match values.len() {
            0 => None,
            n if n % 2 == 1 => Some(values[middle]),
            _ => Some((values[middle - 1] + values[middle]) / 2.0),
        }
    }
}

impl Results {
    pub fn cell(&self, scenario: &str, server: &str) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.scenario == scenario && cell.server == server)
    }

    /// The cell, made if there is none.
    pub fn cell_mut(&mut self, scenario: &str, server: &str) -> &mut Cell {
        let known = self.cells.iter().position(|cell| cell.scenario == scenario && cell.server == server);
        let at = known.unwrap_or_else(|| {
            self.cells.push(Cell { scenario: scenario.into(), server: server.into(), ..Cell::default() });
            self.cells.len() - 1
        });
        &mut self.cells[at]
    }

    /// Names in the order of their first cell.
    pub fn scenarios(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for cell in &self.cells {
            if !names.contains(&cell.scenario.as_str()) {
                names.push(&cell.scenario);
            }
        }
        names
    }

    pub fn write(&self, path: &Path) -> io::Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
        fs::write(path, text + "\n")
    }

    pub fn read(path: &Path) -> io::Result<Results> {
        serde_json::from_str(&fs::read_to_string(path)?).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_run_hides_the_median() {
        let run = |value: f64| Metrics::from([("cpu_us".to_owned(), value)]);
        let mut cell = Cell { runs: vec![run(3.0), run(1.0), run(2.0)], ..Cell::default() };
        assert_eq!(cell.median("cpu_us"), Some(2.0));
        assert_eq!(cell.median("rate"), None);
        cell.runs[0].insert("disturbed".into(), 1.0);
        assert_eq!(cell.median("cpu_us"), Some(1.5));
        cell.failures.push("WRONG BYTES".into());
        assert_eq!(cell.median("cpu_us"), None);
    }
}

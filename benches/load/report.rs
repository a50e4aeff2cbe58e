//! Results as text, as JSON and as a table of several proxies.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The figures of one measurement.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// The proxy.
    front: String,
    /// The measurement.
    row: String,
    /// The repetition.
    round: u32,
    figures: Vec<Figure>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Figure {
    name: String,
    unit: String,
    /// `None` for a value that is not finite: a rate without events.
    value: Option<f64>,
}

impl Figures {
    pub(crate) fn new(front: &str, row: &str, round: u32) -> Self {
        Self { front: front.to_owned(), row: row.to_owned(), round, ..Self::default() }
    }

    pub(crate) fn add(&mut self, name: &str, unit: &str, value: f64) {
        let value = value.is_finite().then_some(value);
        self.figures.push(Figure { name: name.to_owned(), unit: unit.to_owned(), value });
    }

    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Prints the figures as a table, or as one line of JSON.
    pub(crate) fn print(&self, json: bool) -> io::Result<()> {
        if json {
            println!("{}", serde_json::to_string(self)?);
            return Ok(());
        }
        println!("{} {}", self.front, self.row);
        for Figure { name, unit, value } in &self.figures {
            println!("  {name:<44} {:>12} {unit}", value.map_or_else(|| "-".into(), digits));
        }
        for note in &self.notes {
            println!("  {note}");
        }
        Ok(())
    }
}

/// Rounds to three significant digits.
fn digits(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if size < 1.0 => format!("{value:.3}"),
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// A row of the table.
type Key = (usize, String, String, String);

/// Prints a Markdown table of a file with one measurement in JSON per line: a row for each figure, a
/// column for each proxy with median, minimum and maximum, and the ratio to the first proxy's.
pub(crate) fn table(file: &Path, fronts: &[String], only: &[String]) -> io::Result<()> {
    let mut cells: BTreeMap<Key, BTreeMap<String, Vec<f64>>> = BTreeMap::new();
    let mut rows: Vec<String> = Vec::new();
    for line in io::BufReader::new(std::fs::File::open(file)?).lines() {
        let measured: Figures = serde_json::from_str(&line?)?;
        if !rows.contains(&measured.row) {
            rows.push(measured.row.clone());
        }
        let at = rows.iter().position(|row| *row == measured.row).unwrap_or(0);
        for Figure { name, unit, value } in measured.figures {
            if only.is_empty() || only.contains(&name) {
                let key = (at, measured.row.clone(), name, unit);
                cells.entry(key).or_default().entry(measured.front.clone()).or_default().extend(value);
            }
        }
    }
    println!("| | {} |", fronts.join(" | "));
    println!("| --- |{}", " --- |".repeat(fronts.len()));
    for ((_, row, name, unit), by_front) in &cells {
        let unit = if unit.is_empty() { String::new() } else { format!(", {unit}") };
        let first = fronts.first().and_then(|front| by_front.get(front)).and_then(|values| median(values));
        let columns: Vec<String> = fronts
            .iter()
            .enumerate()
            .map(|(n, front)| cell(by_front.get(front).map_or(&[], Vec::as_slice), first.filter(|_| n > 0)))
            .collect();
        println!("| {row}: {name}{unit} | {} |", columns.join(" | "));
    }
    Ok(())
}

fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn cell(values: &[f64], first: Option<f64>) -> String {
    let Some(middle) = median(values) else { return "-".into() };
    let (least, most) =
        values.iter().fold((middle, middle), |(least, most), value| (least.min(*value), most.max(*value)));
    let spread = if values.len() > 1 { format!(" ({}-{})", digits(least), digits(most)) } else { String::new() };
    let ratio = first.filter(|first| *first > 0.0).map(|first| format!(" **{}x**", digits(middle / first)));
    format!("{}{spread}{}", digits(middle), ratio.unwrap_or_default())
}

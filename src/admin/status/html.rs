//! HTML as text, escaped in one place: every word that is not a constant goes through [`Escaped`].

use std::fmt::{self, Display};

/// A text between tags or in an attribute with double quotes.
pub(super) struct Escaped<T>(pub(super) T);

impl<T: AsRef<str>> Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in self.0.as_ref().split_inclusive(['&', '<', '>', '"', '\'']) {
            let plain = part.trim_end_matches(['&', '<', '>', '"', '\'']);
            f.write_str(plain)?;
            f.write_str(match part.get(plain.len()..) {
                Some("&") => "&amp;",
                Some("<") => "&lt;",
                Some(">") => "&gt;",
                Some("\"") => "&quot;",
                Some("'") => "&#39;",
                _ => "",
            })?;
        }
        Ok(())
    }
}

/// A state, shown by a sign and a word, never by the colour alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Good,
    Attention,
    Bad,
}

impl Mark {
    const fn class_and_sign(self) -> (&'static str, &'static str) {
        match self {
            Self::Good => ("good", "●"),
            Self::Attention => ("attention", "▲"),
            Self::Bad => ("bad", "✖"),
        }
    }
}

/// A cell of a table.
#[derive(Debug)]
pub(super) enum Cell {
    Text(String),
    Number(String),
    State(Mark, String),
}

impl Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "<td>{}</td>", Escaped(text)),
            Self::Number(text) => write!(f, "<td class=\"number\">{}</td>", Escaped(text)),
            Self::State(mark, text) => write!(f, "<td>{}</td>", State(*mark, text)),
        }
    }
}

/// A state with its sign.
pub(super) struct State<'a>(pub(super) Mark, pub(super) &'a str);

impl Display for State<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (class, sign) = self.0.class_and_sign();
        write!(f, "<span class=\"{class}\"><span aria-hidden=\"true\">{sign}</span>\u{a0}{}</span>", Escaped(self.1))
    }
}

/// A table: a caption, the heads, and rows that begin with what they are about.
pub(super) struct Table<'a> {
    pub(super) caption: &'a str,
    pub(super) heads: &'a [&'a str],
    pub(super) rows: Vec<(String, Vec<Cell>)>,
}

impl Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<table><caption>{}</caption><thead><tr>", Escaped(self.caption))?;
        for (index, head) in self.heads.iter().enumerate() {
            let first = self.rows.first();
            let cell = index.checked_sub(1).and_then(|index| first?.1.get(index));
            let class = if matches!(cell, Some(Cell::Number(_))) { " class=\"number\"" } else { "" };
            write!(f, "<th scope=\"col\"{class}>{}</th>", Escaped(head))?;
        }
        f.write_str("</tr></thead><tbody>")?;
        for (about, cells) in &self.rows {
            write!(f, "<tr><th scope=\"row\">{}</th>", Escaped(about))?;
            cells.iter().try_for_each(|cell| cell.fmt(f))?;
            f.write_str("</tr>")?;
        }
        f.write_str("</tbody></table>")
    }
}

/// Bars from the left to now at the right edge, the highest as high as the chart.
pub(super) struct Chart<'a> {
    pub(super) label: &'a str,
    pub(super) bars: &'a [u64],
    /// Bars before them, each a part of the one behind it.
    pub(super) front: &'a [u64],
    /// How many fit.
    pub(super) places: usize,
}

impl Display for Chart<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const HEIGHT: u64 = 100;
        let (places, label) = (self.places, Escaped(self.label));
        write!(
            f,
            "<svg role=\"img\" aria-label=\"{label}\" viewBox=\"0 0 {places} {HEIGHT}\" preserveAspectRatio=\"none\">"
        )?;
        let most = self.bars.iter().copied().max().unwrap_or_default().max(1);
        let mut path = |class: &str, bars: &[u64]| {
            write!(f, "<path{class} d=\"")?;
            let left = places.saturating_sub(bars.len());
            for (index, bar) in bars.iter().enumerate().filter(|(_, bar)| **bar > 0) {
                // One is to be seen beside a thousand.
                let height = (bar.saturating_mul(HEIGHT) / most).clamp(4, HEIGHT);
                write!(f, "M{} {HEIGHT}v-{height}h1v{height}z", left + index)?;
            }
            f.write_str("\"/>")
        };
        if self.front.is_empty() {
            path("", self.bars)?;
        } else {
            path(" class=\"behind\"", self.bars)?;
            path("", self.front)?;
        }
        f.write_str("</svg>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn html_values_are_escaped() {
        assert_eq!(Escaped("a<b>&\"'ü\"").to_string(), "a&lt;b&gt;&amp;&quot;&#39;ü&quot;");
        assert_eq!(Escaped("<<").to_string(), "&lt;&lt;");
        assert_eq!(Escaped("").to_string(), "");
        let rows = vec![("<s>".to_owned(), vec![Cell::Number("1".into()), Cell::State(Mark::Bad, "<down>".into())])];
        let table = Table { caption: "&", heads: &["a", "b", "c"], rows }.to_string();
        assert!(table.contains("<th scope=\"row\">&lt;s&gt;</th><td class=\"number\">1</td>"), "{table}");
        assert!(
            table.contains("✖</span>\u{a0}&lt;down&gt;</span>") && table.contains("<caption>&amp;</caption>"),
            "{table}"
        );
        assert!(table.contains("<th scope=\"col\" class=\"number\">b</th><th scope=\"col\">c</th>"), "{table}");
    }

    #[test]
    fn bars_end_at_the_right_edge() {
        let chart = Chart { label: "x", bars: &[50, 0, 1_000, 1], front: &[], places: 6 }.to_string();
        assert!(chart.ends_with("<path d=\"M2 100v-5h1v5zM4 100v-100h1v100zM5 100v-4h1v4z\"/></svg>"), "{chart}");
        assert!(Chart { label: "x", bars: &[], front: &[], places: 6 }.to_string().ends_with("<path d=\"\"/></svg>"));
    }
}

//! The table: a row for each trace, a column for each contender, means below.

use std::fmt;

use crate::contenders::Contender;
use crate::traces::Trace;

/// Hit ratios of all contenders.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    name: String,
    accesses: Option<usize>,
    distinct: Option<u32>,
    ratios: Vec<f64>,
}

impl Table {
    /// Runs `traces` and adds their rows and a row of their means. Nothing when there are none.
    pub fn run(&mut self, group: &str, traces: &[Trace], fraction: f64, shards: usize) {
        let first = self.rows.len();
        for trace in traces {
            let ratio = |contender: Contender| contender.hit_ratio(trace, fraction, shards);
            self.rows.push(Row {
                name: trace.name.clone(),
                accesses: Some(trace.accesses.len()),
                distinct: Some(trace.distinct),
                ratios: Contender::ALL.into_iter().map(ratio).collect(),
            });
        }
        let rows = &self.rows[first..];
        if rows.is_empty() {
            return;
        }
        let mean =
            |column| rows.iter().map(|row| row.ratios[column]).sum::<f64>() / rows.len() as f64;
        let ratios = (0..Contender::ALL.len()).map(mean).collect();
        let name = format!("**mean, {group}**");
        self.rows.push(Row { name, accesses: None, distinct: None, ratios });
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| {:22} | {:>8} | {:>6} |", "trace", "accesses", "keys")?;
        Contender::ALL.iter().try_for_each(|column| write!(f, " {:>11} |", column.name()))?;
        write!(f, "\n|{:-<24}|{:->9}:|{:->7}:|", "", "", "")?;
        Contender::ALL.iter().try_for_each(|_| write!(f, "{:->12}:|", ""))?;
        writeln!(f)?;
        for row in &self.rows {
            let accesses = row.accesses.map(|number| number.to_string()).unwrap_or_default();
            let distinct = row.distinct.map(|number| number.to_string()).unwrap_or_default();
            write!(f, "| {:22} | {accesses:>8} | {distinct:>6} |", row.name)?;
            row.ratios.iter().try_for_each(|ratio| write!(f, " {ratio:>11.4} |"))?;
            writeln!(f)?;
        }
        Ok(())
    }
}

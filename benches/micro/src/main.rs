//! `kiln-micro`: all contestants in turn, round after round; prints one table of medians.
//!
//! In each round everybody does the same work within seconds of the others, so what disturbs the
//! machine disturbs all, and the median over the rounds leaves it out. Memory is weighed in
//! processes of their own. Ends with what is required of Kiln and whether it was met.

use std::fmt::Write;
use std::process::{Command, ExitCode};

use clap::Parser;
use kiln_micro::contestants::{Field, FieldError, Kind, Peer, bounded, resident};
use kiln_micro::footprint::{self, FootprintError};
use kiln_micro::keys::{KEY_LEN, Stream, VALUE_LEN};
use kiln_micro::passes::{Timing, Work, alone, together, undisturbed};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Compares Kiln's engine with other in-process caches and prints markdown.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 all requirements met, 1 one is not met or something failed, 2 usage."
)]
struct Cli {
    /// Keys. The bounded caches have room for a tenth; below 300 000 they are left out, as Kiln
    /// needs more memory than a tenth fills.
    #[arg(long, default_value_t = 1_000_000, value_name = "N",
          value_parser = clap::value_parser!(u32).range(10_000..=20_000_000))]
    items: u32,
    /// Rounds over all contestants.
    #[arg(long, default_value_t = 7, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Operations of one contestant in one run.
    #[arg(long, default_value_t = 1_000_000, value_name = "N",
          value_parser = clap::value_parser!(u32).range(10_000..=100_000_000))]
    operations: u32,
    /// Only these contestants, by the names in the table [default: all].
    #[arg(long, value_delimiter = ';', value_name = "NAME;…")]
    only: Vec<Kind>,
    /// Leave out memory.
    #[arg(long)]
    no_memory: bool,
    /// Leave out speed.
    #[arg(long)]
    no_speed: bool,
    /// Weigh one contestant in this process and print `items overhead`.
    #[arg(long, hide = true, value_name = "NAME")]
    footprint_of: Option<Kind>,
}

#[derive(Debug, thiserror::Error)]
enum MicroError {
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error(transparent)]
    Footprint(#[from] FootprintError),
    #[error("{kind} lost items while it was measured: {hits} hits of {gets} gets")]
    LostItems { kind: Kind, hits: usize, gets: usize },
    #[error("cannot weigh {kind}: {reason}")]
    Child { kind: Kind, reason: String },
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kiln-micro: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<bool, MicroError> {
    if let Some(kind) = cli.footprint_of {
        let footprint::Footprint { items, overhead } = footprint::measure(kind, cli.items)?;
        println!("{items} {overhead}");
        return Ok(true);
    }
    let kinds = if cli.only.is_empty() { Kind::ALL.to_vec() } else { cli.only.clone() };
    let mut rows: Vec<Row> = kinds.iter().map(|&kind| Row::new(kind)).collect();
    let load_before = load();
    // First, while this process is small.
    let mut at_five_million = None;
    if !cli.no_memory {
        for row in &mut rows {
            if !matches!(row.kind, Kind::Kiln { batch: 2.. }) {
                row.overhead = Some(weigh(row.kind, cli.items)?);
            }
        }
        if kinds.contains(&Kind::KILN) {
            at_five_million = Some(weigh(Kind::KILN, 5_000_000)?);
        }
    }
    if !cli.no_speed {
        race(cli, &kinds, &mut rows)?;
    }
    print!("{}", report(cli, &rows, &load_before));
    let verdicts = verdicts(&rows, at_five_million);
    println!("\n| required of Kiln | measured | |\n|---|---|---|");
    for Verdict { what, measured, met } in &verdicts {
        println!("| {what} | {measured} | {} |", if *met { "pass" } else { "**FAIL**" });
    }
    Ok(verdicts.iter().all(|verdict| verdict.met))
}

/// With fewer keys a tenth of them does not fill the least memory that Kiln works with.
const ITEMS_MIN_BOUNDED: u32 = 300_000;

/// What was measured of one contestant. A sample a round.
struct Row {
    kind: Kind,
    get_zipf: Vec<Timing>,
    get_uniform: Vec<Timing>,
    mix_zipf: Vec<Timing>,
    mix_uniform: Vec<Timing>,
    get_zipf_two: Vec<Timing>,
    get_uniform_two: Vec<Timing>,
    tenth_get: Vec<Timing>,
    tenth: Vec<Timing>,
    tenth_two: Vec<Timing>,
    tenth_items: Option<usize>,
    overhead: Option<f64>,
}

impl Row {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            get_zipf: Vec::new(),
            get_uniform: Vec::new(),
            mix_zipf: Vec::new(),
            mix_uniform: Vec::new(),
            get_zipf_two: Vec::new(),
            get_uniform_two: Vec::new(),
            tenth_get: Vec::new(),
            tenth: Vec::new(),
            tenth_two: Vec::new(),
            tenth_items: None,
            overhead: None,
        }
    }

    fn hit_ratio(&self) -> Option<f64> {
        let runs = || self.tenth.iter().chain(&self.tenth_two);
        let operations: usize = runs().map(|run| run.operations).sum();
        let hits: usize = runs().map(|run| run.hits).sum();
        (operations > 0).then(|| hits as f64 / operations as f64)
    }
}

fn race(cli: &Cli, kinds: &[Kind], rows: &mut [Row]) -> Result<(), MicroError> {
    let operations = cli.operations as usize;
    // Twice what a run takes: each begins where the one before it ended.
    let zipf = Stream::zipf(cli.items, 2 * operations);
    let uniform = Stream::uniform(cli.items, 2 * operations);
    let all = resident(cli.items, kinds)?;
    let bounded_kinds = if cli.items < ITEMS_MIN_BOUNDED { &[] } else { kinds };
    let tenth = bounded(cli.items / 10, bounded_kinds)?;
    for (_, contestant) in &tenth {
        // Until what is remembered of the departed is there, too.
        alone(&**contestant, Work::GetOrSet, &zipf, 0, 2 * operations);
    }
    for round in 0..cli.rounds as usize {
        let start = round * operations;
        for (row, contestant) in paired(rows, &all, round) {
            let one =
                |work, stream| undisturbed(|| alone(contestant, work, stream, start, operations));
            let two = |stream| {
                undisturbed(|| together(contestant, Work::Get, stream, start, operations, 2))
            };
            let samples = [
                (&mut row.get_zipf, one(Work::Get, &zipf)),
                (&mut row.get_uniform, one(Work::Get, &uniform)),
                (&mut row.get_zipf_two, two(&zipf)),
                (&mut row.get_uniform_two, two(&uniform)),
            ];
            for (series, run) in samples {
                let Timing { hits, operations: gets, .. } = run;
                if hits < gets {
                    return Err(MicroError::LostItems { kind: row.kind, hits, gets });
                }
                series.push(run);
            }
            row.mix_zipf.push(one(Work::Mix, &zipf));
            row.mix_uniform.push(one(Work::Mix, &uniform));
        }
        for (row, contestant) in paired(rows, &tenth, round) {
            let get = || alone(contestant, Work::Get, &zipf, start, operations);
            row.tenth_get.push(undisturbed(get));
            let work = Work::GetOrSet;
            let one = || alone(contestant, work, &zipf, start, operations);
            let two = || together(contestant, work, &zipf, start, operations, 2);
            row.tenth.push(undisturbed(one));
            row.tenth_two.push(undisturbed(two));
        }
    }
    for (row, contestant) in paired(rows, &tenth, 0) {
        row.tenth_items = Some(contestant.items());
    }
    Ok(())
}

/// Rows with their contestants; each round begins with another, so that none always follows the
/// same one.
fn paired<'a>(
    rows: &'a mut [Row],
    field: &'a Field,
    round: usize,
) -> impl Iterator<Item = (&'a mut Row, &'a dyn kiln_micro::contestants::Contestant)> {
    let mut pairs: Vec<_> = rows
        .iter_mut()
        .filter_map(|row| {
            let (_, contestant) = field.iter().find(|(kind, _)| *kind == row.kind)?;
            Some((row, &**contestant))
        })
        .collect();
    let len = pairs.len();
    pairs.rotate_left(round % len.max(1));
    pairs.into_iter()
}

/// Bytes per item beyond key and value, told by a child process.
fn weigh(kind: Kind, items: u32) -> Result<f64, MicroError> {
    let failed = |reason: String| MicroError::Child { kind, reason };
    let program = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
    let output = Command::new(program)
        .args(["--footprint-of", &kind.to_string(), "--items", &items.to_string()])
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let overhead = text.split_whitespace().nth(1).and_then(|number| number.parse().ok());
    overhead.ok_or_else(|| failed(format!("it printed `{}`", text.trim())))
}

fn report(cli: &Cli, rows: &[Row], load_before: &str) -> String {
    let mut text = format!(
        "{} keys of {KEY_LEN} bytes, values of {VALUE_LEN}; medians of {} interleaved rounds of {} \
         operations; load average {load_before} before, {} after\n\n",
        cli.items,
        cli.rounds,
        cli.operations,
        load(),
    );
    text.push_str(
        "| all keys resident: | get zipf ns | get uniform ns | 10:1 zipf ns | 10:1 uniform ns \
         | get zipf M/s, 1 and 2 threads | get uniform M/s, 1 and 2 threads \
         | room for 10 %: get ns | get or set ns | M/s, 1 and 2 threads | hit ratio | items \
         | bytes per item |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let ns = |series: &[Timing]| or_dash(median(series, Timing::cpu_ns), 0);
        let mega = |one: &[Timing], two: &[Timing]| {
            let [one, two] = [one, two].map(|series| median(series, Timing::mega_per_s));
            format!("{}, {}", or_dash(one, 1), or_dash(two, 1))
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            row.kind,
            ns(&row.get_zipf),
            ns(&row.get_uniform),
            ns(&row.mix_zipf),
            ns(&row.mix_uniform),
            mega(&row.get_zipf, &row.get_zipf_two),
            mega(&row.get_uniform, &row.get_uniform_two),
            ns(&row.tenth_get),
            ns(&row.tenth),
            mega(&row.tenth, &row.tenth_two),
            or_dash(row.hit_ratio(), 3),
            row.tenth_items.map_or_else(|| "-".to_owned(), |items| items.to_string()),
            or_dash(row.overhead, 1),
        );
    }
    let waited = |series: fn(&Row) -> [&Vec<Timing>; 2]| {
        let runs: Vec<Timing> = rows.iter().flat_map(series).flatten().copied().collect();
        or_dash(median(&runs, |run| run.waited_part() * 100.0), 1)
    };
    let one = waited(|row| [&row.get_zipf, &row.get_uniform]);
    let two = waited(|row| [&row.get_zipf_two, &row.get_uniform_two]);
    let _ = writeln!(
        text,
        "\nns are processor time with one thread; M/s are by the clock. Threads waited for a core \
         {one} % of their time when alone, {two} % when two. Bytes per item are resident memory \
         beyond key and value."
    );
    text
}

/// Part of two threads' time beyond which waiting for cores makes their rate meaningless.
const WAITED_MAX: f64 = 0.15;

struct Verdict {
    what: &'static str,
    measured: String,
    met: bool,
}

fn verdicts(rows: &[Row], at_five_million: Option<f64>) -> Vec<Verdict> {
    let row = |kind| rows.iter().find(|row| row.kind == kind);
    let mut verdicts = Vec::new();
    let mut judge = |what, measured: Option<f64>, unit: &str, met: fn(f64) -> bool| {
        if let Some(figure) = measured {
            let measured = match figure {
                figure if figure.is_nan() => "disturbed, measure again".to_owned(),
                figure => format!("{figure:.2} {unit}"),
            };
            verdicts.push(Verdict { what, measured, met: met(figure) });
        }
    };
    if let Some(kiln) = row(Kind::KILN) {
        let ns = |series: &[Timing]| median(series, Timing::cpu_ns);
        // Disturbed threads do not meet: their rate says nothing, so it is none.
        let more = |one: &[Timing], two: &[Timing]| {
            let more = median(two, Timing::mega_per_s)? / median(one, Timing::mega_per_s)?;
            let waited = median(two, Timing::waited_part)?;
            Some(if waited > WAITED_MAX { f64::NAN } else { more })
        };
        judge("get, zipf: under 100 ns", ns(&kiln.get_zipf), "ns", |ns| ns < 100.0);
        judge("get, uniform: under 100 ns", ns(&kiln.get_uniform), "ns", |ns| ns < 100.0);
        let tenth = ns(&kiln.tenth_get);
        judge("get, room for 10 %, zipf: under 100 ns", tenth, "ns", |ns| ns < 100.0);
        if let Some(peer) = row(Kind::Peer(Peer::QuickCache)) {
            let ratio = |ours: &[Timing], theirs: &[Timing]| Some(ns(ours)? / ns(theirs)?);
            let zipf = ratio(&kiln.get_zipf, &peer.get_zipf);
            let uniform = ratio(&kiln.get_uniform, &peer.get_uniform);
            judge("get, zipf: no slower than quick_cache", zipf, "x", |ratio| ratio <= 1.0);
            judge("get, uniform: no slower than quick_cache", uniform, "x", |ratio| ratio <= 1.0);
            let tenth = ratio(&kiln.tenth_get, &peer.tenth_get);
            let what = "get, room for 10 %, zipf: no slower than quick_cache";
            judge(what, tenth, "x", |ratio| ratio <= 1.0);
        }
        let zipf = more(&kiln.get_zipf, &kiln.get_zipf_two);
        let uniform = more(&kiln.get_uniform, &kiln.get_uniform_two);
        judge("two threads get more than one, zipf", zipf, "x", |more| more > 1.0);
        judge("two threads get more than one, uniform", uniform, "x", |more| more > 1.0);
        judge("bytes per item: at most 40", kiln.overhead, "bytes", |bytes| bytes <= 40.0);
        let five = "bytes per item at 5 million: at most 40";
        judge(five, at_five_million, "bytes", |bytes| bytes <= 40.0);
    }
    if let Some(batched) = row(Kind::Kiln { batch: 64 }) {
        let ns = |series: &[Timing]| median(series, Timing::cpu_ns);
        judge("batched get, zipf: under 50 ns", ns(&batched.get_zipf), "ns", |ns| ns < 50.0);
        judge("batched get, uniform: under 50 ns", ns(&batched.get_uniform), "ns", |ns| ns < 50.0);
    }
    verdicts
}

fn median(series: &[Timing], figure: fn(&Timing) -> f64) -> Option<f64> {
    let mut figures: Vec<f64> = series.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    let upper = *figures.get(figures.len() / 2)?;
    let lower = figures[(figures.len() - 1) / 2];
    Some((lower + upper) / 2.0)
}

fn or_dash(figure: Option<f64>, digits: usize) -> String {
    figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.digits$}"))
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn took(nanos: u64) -> Timing {
        let time = Duration::from_nanos(nanos);
        Timing { operations: 1, hits: 1, wall: time, cpu: time, ..Timing::default() }
    }

    #[test]
    fn a_median_is_the_middle_or_half_way_between_the_two_in_the_middle() {
        assert_eq!(median(&[took(9), took(1), took(5)], Timing::cpu_ns), Some(5.0));
        assert_eq!(median(&[took(9), took(1), took(5), took(6)], Timing::cpu_ns), Some(5.5));
        assert_eq!(median(&[], Timing::cpu_ns), None);
    }

    #[test]
    fn what_others_disturbed_is_not_passed() {
        let mut row = Row::new(Kind::KILN);
        row.get_zipf = vec![took(90)];
        row.get_zipf_two = vec![Timing { waited: Duration::from_nanos(90), ..took(10) }];
        let verdicts = verdicts(&[row], None);
        let scaling = verdicts.iter().find(|verdict| verdict.what.starts_with("two")).unwrap();
        assert!(!scaling.met);
        assert_eq!(scaling.measured, "disturbed, measure again");
    }

    #[test]
    fn a_slow_get_and_a_fat_item_are_failures() {
        let mut row = Row::new(Kind::KILN);
        row.get_zipf = vec![took(99)];
        row.get_uniform = vec![took(101)];
        row.overhead = Some(41.0);
        let failed: Vec<_> = verdicts(&[row], Some(39.0))
            .into_iter()
            .filter(|verdict| !verdict.met)
            .map(|verdict| verdict.what)
            .collect();
        assert_eq!(failed, ["get, uniform: under 100 ns", "bytes per item: at most 40"]);
    }
}

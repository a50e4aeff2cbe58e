//! Everything a configuration says, loaded and built: what `check`, `run` and a reload have in common.

use std::path::Path;
use std::sync::Arc;

use super::loop_check;
use crate::base::sys;
use crate::config::{self, Config, Problem};
use crate::config_files::{self, Files};
use crate::process::Snapshot;
use crate::telemetry::metrics::Metrics;

/// Two sockets a session, and some for everything else.
const SPARE_DESCRIPTORS: u64 = 256;

/// Loads the config file.
///
/// # Errors
/// Every mistake in it, and those in the files that its sound sections name.
pub(crate) fn load(file: &Path) -> Result<Config, Vec<Problem>> {
    config::load(file).map_err(|mistakes| {
        let in_files = mistakes.draft.iter().flat_map(|draft| config_files::problems(draft));
        mistakes.problems.into_iter().chain(in_files).collect()
    })
}

/// Loads and builds everything the config file says: what `check`, `run` and a reload have in common.
///
/// # Errors
/// Every mistake.
pub(crate) fn prepare(
    file: &Path,
    metrics: &Arc<Metrics>,
    previous: Option<&Snapshot>,
) -> Result<Snapshot, Vec<Problem>> {
    let mut config = load(file)?;
    fit_descriptors(&mut config, sys::raise_open_files());
    let mut problems = loop_check::problems(&config);
    match Files::read(&config) {
        Ok(files) if problems.is_empty() => {
            config.warnings.extend(files.warnings.iter().cloned());
            Ok(Snapshot::new(config, files, metrics, previous))
        }
        Ok(_) => Err(problems),
        Err(more) => {
            problems.extend(more);
            Err(problems)
        }
    }
}

/// Lowers `limits.connections` to what the system's limit of open files allows, with a warning.
fn fit_descriptors(config: &mut Config, available: u64) {
    let fitting = usize::try_from(available.saturating_sub(SPARE_DESCRIPTORS) / 2).unwrap_or(usize::MAX).max(1);
    let wanted = config.limits.connections;
    if wanted > fitting {
        let needed = (wanted as u64).saturating_mul(2).saturating_add(SPARE_DESCRIPTORS);
        let words = format!(
            "needs {needed} open files, but the system allows {available}: lowered to {fitting} until LimitNOFILE \
             (or `ulimit -n`) is raised"
        );
        config.warnings.push(config.problem("limits.connections", words));
        config.limits.connections = fitting;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_limit_is_lowered_to_the_available_descriptors() {
        let mut config = config::parse(Path::new("/c.yaml"), super::super::TEST_CONFIG).unwrap();
        config.warnings.clear();
        fit_descriptors(&mut config, 2_256);
        assert_eq!((config.limits.connections, config.warnings.len()), (1_000, 0));
        fit_descriptors(&mut config, 2_255);
        assert_eq!(config.limits.connections, 999);
        let [warning] = config.warnings.as_slice() else { panic!("{:?}", config.warnings) };
        let words = "needs 2256 open files, but the system allows 2255: lowered to 999";
        assert!(warning.to_string().starts_with(&format!("/c.yaml:7: limits.connections: {words}")), "{warning}");
        fit_descriptors(&mut config, 3);
        assert_eq!(config.limits.connections, 1);
    }
}

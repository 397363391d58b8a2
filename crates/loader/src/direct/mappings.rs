//! What it means that the system maps no more memory.
//!
//! An instance has memory and a stack of its own, which are mappings and address
//! space long before they are memory. The system bounds both for a process, and
//! refuses either with the same number, even where memory is free. So the mappings
//! are counted, to name the bound that was met.

use std::fs;

use rustix::io::Errno;

/// Mappings of one instance: of its memory and of its stack, with their guards.
const OF_AN_INSTANCE: usize = 6;

/// Why the system has refused to map memory, and what to do; none where the error
/// is about something else.
pub(super) fn refusal(error: &wasmtime::Error) -> Option<String> {
    is_refused(error).then(|| advice(count(), bound()))
}

fn is_refused(error: &wasmtime::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        let errno = cause.downcast_ref::<Errno>().map(|errno| errno.raw_os_error());
        errno.or(io) == Some(Errno::NOMEM.raw_os_error())
    })
}

/// What to do where `now` of `most` mappings are there.
fn advice(now: Option<usize>, most: Option<usize>) -> String {
    let refused = "the system maps no more memory for this process";
    match (now, most) {
        // Those that it had asked for before the refusal are given back already.
        (Some(now), Some(most)) if now + 2 * OF_AN_INSTANCE >= most => format!(
            "{refused}: each live actor takes {OF_AN_INSTANCE} mappings, and {now} are there; \
             raise vm.max_map_count (now {most})"
        ),
        _ => format!(
            "{refused}: each live actor takes some GiB of address space, most of which is never \
             touched; raise the bound on it (ulimit -v), or free memory"
        ),
    }
}

/// Mappings of this process.
fn count() -> Option<usize> {
    let maps = fs::read("/proc/self/maps").ok()?;
    Some(maps.iter().filter(|byte| **byte == b'\n').count())
}

/// Mappings that a process may have.
fn bound() -> Option<usize> {
    fs::read_to_string("/proc/sys/vm/max_map_count").ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_to_map_memory_is_known_by_its_number() {
        let io = |errno: Errno| std::io::Error::from_raw_os_error(errno.raw_os_error());
        for (error, refused) in [
            (wasmtime::Error::new(Errno::NOMEM), true),
            (wasmtime::Error::new(Errno::NOMEM).context("no stack"), true),
            (wasmtime::Error::new(io(Errno::NOMEM)), true),
            (wasmtime::Error::new(io(Errno::ACCESS)), false),
            (wasmtime::Error::new(Errno::AGAIN), false),
            (wasmtime::Error::msg("Cannot allocate memory"), false),
            (wasmtime::Trap::UnreachableCodeReached.into(), false),
        ] {
            assert_eq!(refusal(&error).is_some(), refused, "{error:?}");
        }
    }

    #[test]
    fn the_advice_names_the_bound_that_was_met() {
        let mappings = "each live actor takes 6 mappings, and 65525 are there; raise \
                        vm.max_map_count (now 65530)";
        for (now, most, words) in [
            (Some(65_525), Some(65_530), mappings),
            (Some(65_530), Some(65_530), "raise vm.max_map_count (now 65530)"),
            (Some(65_518), Some(65_530), "raise vm.max_map_count (now 65530)"),
            (Some(65_517), Some(65_530), "raise the bound on it (ulimit -v)"),
            (Some(100), Some(65_530), "raise the bound on it (ulimit -v)"),
            (None, Some(65_530), "raise the bound on it (ulimit -v)"),
            (Some(65_530), None, "raise the bound on it (ulimit -v)"),
        ] {
            let advice = advice(now, most);
            assert!(advice.contains(words), "{now:?} of {most:?}: {advice}");
        }
        assert!(count() > Some(10) && bound() > Some(10));
    }
}

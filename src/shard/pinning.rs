//! Which shard of a group runs on which processor, and which ones share one.
#![forbid(unsafe_code)]

/// Which processor each shard's thread runs on. Done on Linux and on Windows, where the numbers are those of the group of
/// processors that a thread begins in; elsewhere shards run unpinned.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Pinning {
    /// Wherever the scheduler puts it.
    #[default]
    None,
    /// Shard `n` on the `n`-th processor that the process may use, if there are enough of them; else as `None`.
    PerShard,
    /// Shard `n` on the `n`-th of these processors, starting over when the list ends.
    On(Vec<usize>),
}

impl Pinning {
    /// The processor of shard `index` of `shards`, if it is put on one; `allowed` may be used.
    pub(crate) fn place(&self, index: usize, shards: usize, allowed: &[usize]) -> Option<usize> {
        match self {
            Pinning::None => None,
            Pinning::PerShard => (allowed.len() >= shards).then(|| allowed[index]),
            Pinning::On(list) => (!list.is_empty()).then(|| list[index % list.len()]),
        }
    }

    /// Whether shard `index` of `shards` shares its processor with another one, where `allowed` of them may be used.
    pub(crate) fn is_crowded(&self, index: usize, shards: usize, allowed: usize) -> bool {
        match self {
            Pinning::On(list) if !list.is_empty() => {
                let on = |shard: usize| list[shard % list.len()];
                (0..shards).any(|other| other != index && on(other) == on(index))
            }
            _ => shards > allowed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_crowded_if_another_one_has_its_processor() {
        assert!(!Pinning::None.is_crowded(0, 2, 2));
        assert!(Pinning::None.is_crowded(0, 3, 2));
        assert!(!Pinning::PerShard.is_crowded(1, 2, 2));
        assert!(Pinning::PerShard.is_crowded(0, 4, 2), "there are too few to pin to");
        let three_places = Pinning::On(vec![4, 7, 4]);
        let crowded = [0, 1, 2].map(|index| three_places.is_crowded(index, 3, 1));
        assert_eq!(crowded, [true, false, true]);
        assert!(!three_places.is_crowded(0, 2, 1));
        assert!(Pinning::On(vec![1, 2]).is_crowded(1, 4, 64), "the list starts over");
        assert!(Pinning::On(Vec::new()).is_crowded(0, 2, 1));
    }
}

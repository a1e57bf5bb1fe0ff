"""Question strategies: which pairs of images to ask about.

A strategy is a function `strategy(features, labels, asker, config)` that asks, such as:

    def ask_least_similar_pairs(features, labels, asker, config):
        for i, j in least_similar_pairs(features, labels):
            asker.ask_pair(i, j)

It is given to `fastreid_al.active.refine` or `fastreid_al.runs.run_training` as a function, or by
name: a name of `fastreid_al.plugins.BUILT_IN`, or an entry point of another package in the group
"fastreid_al.strategies".
"""

from .protocol import Strategy, load_strategy

__all__ = ["Strategy", "load_strategy"]

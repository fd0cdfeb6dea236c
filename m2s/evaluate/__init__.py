"""The tables of the README, each from one command: `m2s-eval simulation`, `m2s-eval acdc`, `m2s-eval subject1081`."""

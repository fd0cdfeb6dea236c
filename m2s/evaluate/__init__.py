"""The tables of the README, each from one command: `m2s-eval simulation|acdc|subject1081|spread|flags`."""

"""Where launchers enter: `accelerate launch -m unimm.train ...` or `torchrun -m unimm.train ...`, as `unimm train ...`."""

from unimm.cli.train import main

if __name__ == "__main__":
    main()

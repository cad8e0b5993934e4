"""Command-line flags of the extension, read by the WebUI before anything else of it."""


def preload(parser):
    parser.add_argument("--train-lora-dir", metavar="DIR", default=None,
                        help="Train LoRA: where data sets and jobs are kept (default: train_lora in the data directory)")
    parser.add_argument("--train-lora-allowed-dirs", metavar="DIR", nargs="+", default=[],
                        help="Train LoRA: further folders that pictures may come from when the WebUI is reachable from other machines")

"""Command-line flags of the extension, read by the WebUI before anything else of it."""


def preload(parser):
    parser.add_argument(
        "--train-lora-dir",
        metavar="DIR",
        default=None,
        help=(
            "Train LoRA: where data sets and jobs are kept (default: train_lora in the data"
            " directory)"
        ),
    )
    parser.add_argument(
        "--train-lora-allowed-dirs",
        metavar="DIR",
        nargs="+",
        default=[],
        help=(
            "Train LoRA: further folders that pictures may come from when the WebUI is reachable"
            " from other machines"
        ),
    )
    parser.add_argument(
        "--train-lora-keep-jobs",
        metavar="K",
        type=int,
        default=None,
        help=(
            "Train LoRA: keep the newest K finished jobs; older ones are deleted, their LoRAs stay"
            " (default: 0, all)"
        ),
    )
    parser.add_argument(
        "--train-lora-state-days",
        metavar="DAYS",
        type=float,
        default=None,
        help=(
            "Train LoRA: how long a finished job can be trained on; then its training state is"
            " removed (default: 30, 0: always)"
        ),
    )
    parser.add_argument(
        "--train-lora-state-gb",
        metavar="GB",
        type=float,
        default=None,
        help=(
            "Train LoRA: how much the training states of finished jobs may take; the oldest go"
            " first (default: 5, 0: any)"
        ),
    )

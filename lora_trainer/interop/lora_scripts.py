"""Settings files of lora-scripts, brought into sd-scripts' names; files of sd-scripts stay as they
are.
"""

from ..settings.setting import WrittenSettings
from .conversion import Conversion, parse_arguments


def from_lora_scripts(values: WrittenSettings) -> Conversion:
    """Bring what lora-scripts' page saves into sd-scripts' names; a file of sd-scripts stays as it
    is.
    """
    conversion = Conversion(values)
    kohya_values = conversion.values
    given = parse_arguments(conversion.take("network_args"))
    given.update(parse_arguments(conversion.take("network_args_custom")))
    if kohya_values.get("network_module") == "lycoris.kohya":
        given.setdefault("algo", conversion.take("lycoris_algo", "locon"))
        given.update(
            {
                key: value
                for key in ("conv_dim", "conv_alpha", "dropout", "train_norm")
                if (value := conversion.take(key)) is not None
            }
        )
        if (factor := conversion.take("lokr_factor")) is not None:
            given["factor"] = factor
    elif kohya_values.get("network_module") is not None:
        given.update(
            {
                key: value
                for key in ("conv_dim", "conv_alpha")
                if (value := conversion.take(key)) is not None
            }
        )
    weights = {
        key: value
        for key in ("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold")
        if (value := conversion.take(key)) is not None
    }
    given.update(weights if conversion.take("enable_block_weights", True) is not False else {})
    if given:
        kohya_values["network_args"] = given
    optimizer = {
        **parse_arguments(conversion.take("optimizer_args")),
        **parse_arguments(conversion.take("optimizer_args_custom")),
    }
    optimizer.update(
        {
            name.removeprefix("prodigy_"): value
            for name in ("prodigy_d0", "prodigy_d_coef")
            if (value := conversion.take(name)) is not None
        }
    )
    if optimizer:
        kohya_values["optimizer_args"] = optimizer
    return conversion

"""Settings files of lora-scripts."""

from tests.support.foreign_settings import imported, left, needs_toml

LORA_SCRIPTS = """
model_train_type = "sdxl-lora"
pretrained_model_name_or_path = "./sd-models/noob.safetensors"
train_data_dir = "./train/aki"
resolution = "1024,1024"
enable_bucket = true
min_bucket_reso = 256
max_bucket_reso = 2048
bucket_reso_steps = 32
output_name = "aki"
save_every_n_epochs = 2
max_train_epochs = 10
network_train_unet_only = true
unet_lr = "1e-4"
text_encoder_lr = "1e-5"
lr_scheduler = "cosine_with_restarts"
lr_scheduler_num_cycles = 1
optimizer_type = "Prodigy"
prodigy_d_coef = "2.0"
optimizer_args_custom = ["weight_decay=0.01"]
network_module = "lycoris.kohya"
lycoris_algo = "lokr"
lokr_factor = 8
conv_dim = 4
conv_alpha = 1
dropout = 0.1
network_dim = 32
network_alpha = 32
positive_prompts = "1girl"
sample_width = 512
clip_skip = 2
max_token_length = 255
caption_extension = ".txt"
v_parameterization = true
lowram = false
"""


@needs_toml
def test_lora_scripts_toml(tmp_path):
    found = imported(tmp_path, LORA_SCRIPTS, "run.toml")
    assert found.source == "lora-scripts settings"
    expected = {
        "lora_type": "lokr",
        "lokr_factor": 8,
        "lora_rank": 32,
        "conv_rank": 4,
        "conv_alpha": 1.0,
        "lora_dropout": 0.1,
        "learning_rate": 1e-4,
        "optimizer": "prodigy",
        "optimizer_args": "d_coef=2.0",
        "weight_decay": 0.01,
        "scheduler_cycles": 1,
        "epochs": 10,
        "prediction_type": "v_prediction",
        "max_token_length": 255,
        "train_text_encoder": False,
        "resolution": 1024,
        "bucket_step": 32,
        "save_every_n_epochs": 2,
    }
    assert {
        name: found.settings.get(name) for name in expected
    } == expected and "text_encoder_lr" not in found.settings
    assert set(left(found)) == {
        "model_train_type",
        "positive_prompts",
        "sample_width",
        "clip_skip",
        "network_args dropout",
    }

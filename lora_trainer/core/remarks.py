"""What a person should know of a run before it begins, in sentences. What would make it fail is refused elsewhere."""
from .advice import STYLE_PICTURES, SUBJECT_PICTURES, in_words
from .config import TrainConfig
from .dataset import TRANSPARENT, Picture, Problem
from .selection import Selection

FEW_PICTURES, MOST_SAID = 5, 5
WORDS_PER_TOKEN = 55 / 75              # of captions in English; lists of tags have fewer


def remarks_on(config: TrainConfig, selection: Selection, captions: list[str], *, total_steps: int) -> list[str]:
    """Return the remarks on a run, those on its files first."""
    by_role = {role: [(picture, caption) for picture, caption, of in zip(selection.pictures, captions, selection.roles) if of == role]
               for role in ("train", "regularisation", "validation")}
    yours = by_role["train"] + by_role["validation"]
    return (_unusable(selection.problems) + _few([picture for picture, _ in by_role["train"]]) + _bare(yours) + _long(config, yours + by_role["regularisation"])
            + _one_tag_each(config, yours) + _small(config, [picture for picture, _ in yours]) + selection.remarks + _regularisation(config, by_role["regularisation"])
            + _without_effect(config, total_steps) + _of_single_pictures(config, selection.pictures))


def _unusable(problems: list[Problem]) -> list[str]:
    found = [problem.reason for problem in problems[:MOST_SAID]]
    return found + [f"{len(problems) - MOST_SAID} more files cannot be used."] * (len(problems) > MOST_SAID)


def _few(pictures: list[Picture]) -> list[str]:
    if len(pictures) >= FEW_PICTURES:
        return []
    return [f"Only {len(pictures)} picture{'s' * (len(pictures) > 1)}: the LoRA may learn {'it' if len(pictures) == 1 else 'them'} by heart. "
            f"{in_words(SUBJECT_PICTURES)} work best, for a style {in_words(STYLE_PICTURES)}."]


def _bare(pictures: list[tuple[Picture, str]]) -> list[str]:
    bare = [picture for picture, caption in pictures if not caption]
    return [f"{len(bare)} of {len(pictures)} pictures have no caption and there is no trigger word: nothing will call what they teach."] if bare else []


def _long(config: TrainConfig, pictures: list[tuple[Picture, str]]) -> list[str]:
    most = round(config.max_token_length * WORDS_PER_TOKEN)
    long = [(picture, len(caption.split())) for picture, caption in pictures if len(caption.split()) > most]
    return [f"The caption of {long[0][0].path.name} has {long[0][1]} words; only the first {config.max_token_length} tokens, about {most} words, count."
            ] if long else []


def _one_tag_each(config: TrainConfig, pictures: list[tuple[Picture, str]]) -> list[str]:
    """Tags stand between commas; sentences have nothing to shuffle."""
    varied = config.shuffle_caption or config.caption_tag_dropout_rate
    return ["Tags are shuffled or left out, but no caption has more than one part: they stand between commas."
            ] if varied and not any("," in picture.caption for picture, _ in pictures) else []


def _small(config: TrainConfig, pictures: list[Picture]) -> list[str]:
    small = [] if config.bucket_no_upscale and config.enable_bucket else [picture for picture in pictures if picture.width * picture.height < 0.8 * config.resolution ** 2]
    return [f"{len(small)} pictures are smaller than {config.resolution}x{config.resolution} and will be enlarged, which blurs them."] if small else []


def _regularisation(config: TrainConfig, pictures: list[tuple[Picture, str]]) -> list[str]:
    if not pictures:
        return []
    bare = [picture for picture, caption in pictures if not caption]
    found = [f"{len(bare)} of {len(pictures)} regularisation pictures have no caption. Put them into a folder called 1_ and what they show, such as 1_cat."] if bare else []
    return found + ["The regularisation pictures' weight is 0: they take time and change nothing."] * (not config.prior_loss_weight)


def _without_effect(config: TrainConfig, total_steps: int) -> list[str]:
    checks = [(config.lr_warmup_steps >= total_steps,
               f"The warm-up takes {config.lr_warmup_steps} steps and the run {total_steps}: the learning rate never gets to its full height."),
              ((config.conv_rank or config.conv_alpha) and config.lora_targets != "all", "Rank and alpha of convolutions change nothing unless Layers is all."),
              (config.train_text_encoder and not config.text_encoder_lr, "The text encoder's learning rate is 0: it learns nothing.")]
    return [sentence for wrong, sentence in checks if wrong]


def _of_single_pictures(config: TrainConfig, pictures: list[Picture]) -> list[str]:
    """What scanning found; with masks from transparency, what is transparent is not learned and its colour is all the same."""
    known = {"no caption", TRANSPARENT} if config.masked_loss == "alpha" else {"no caption"}
    return [f"{picture.path.name}: {remark}." for picture in pictures for remark in picture.warnings if remark not in known][:MOST_SAID]

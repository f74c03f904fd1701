"""``ssamba pretrain``, ``finetune`` and ``show-masks``."""

from pathlib import Path

from .options import CHECKPOINT, INTERRUPTED, add_checkpoint, add_device, add_out


def add_commands(commands):
    pretrain = commands.add_parser("pretrain", help="pretrain a network; use torchrun for several GPUs")
    _add_arguments(pretrain, "tiny_400 or smoke", "train=my.jsonl model.norm=rms_norm")
    pretrain.set_defaults(run=_pretrain)

    finetune = commands.add_parser("finetune",
                                   help="fine-tune a checkpoint as a classifier; use torchrun for several GPUs")
    _add_arguments(finetune, "esc50 or speech_commands_v1", "data=my.csv checkpoint=RUN/best")
    finetune.set_defaults(run=_finetune)

    show = commands.add_parser("show-masks", help="draw a recording, its masked patches and their reconstruction")
    add_checkpoint(show, help=f"checkpoint with pretraining heads: {CHECKPOINT}")
    show.add_argument("recording", type=Path, help="audio file to draw")
    add_out(show, "picture to write", "OUT.png")
    show.add_argument("--seed", type=int, default=0, help="seed of the mask; default: 0")
    show.set_defaults(run=_show_masks)


def _add_arguments(parser, recipes, fields):
    parser.add_argument("recipe", help=f"a YAML file, or one of the package's, such as {recipes}")
    add_out(parser, "folder of the run", "RUN")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", dest="overrides",
                        help=f"fields of the recipe to change, such as {fields}")
    parser.add_argument("--resume", action="store_true", help="resume the run in RUN, if there is one")
    add_device(parser)


def _pretrain(options):
    from ..plugin.teachers import S3prlTeacher
    from ..pretraining.recipe import PretrainingRecipe
    from ..pretraining.trainer import pretrain
    from ..training.recipe import read_recipe

    recipe = read_recipe(options.recipe, PretrainingRecipe, options.overrides)
    finished = pretrain(recipe, options.out, options.resume, options.device, {"s3prl": S3prlTeacher})
    return 0 if finished else INTERRUPTED


def _finetune(options):
    from ..files import shown
    from ..finetuning.recipe import FinetuningRecipe
    from ..finetuning.results import metrics_of
    from ..finetuning.trainer import finetune
    from ..training.distributed import rank
    from ..training.recipe import read_recipe

    recipe = read_recipe(options.recipe, FinetuningRecipe, options.overrides)
    results = finetune(recipe, options.out, options.resume, options.device)
    if results is None:
        return INTERRUPTED
    if rank() > 0:
        return 0
    deviations = results.get("deviation", {})
    for name, value in metrics_of(results["test"]).items():
        print(f"test {name} {shown(value)}" + (f" ± {shown(deviations[name])}" if name in deviations else ""))


def _show_masks(options):
    from ..checkpoint import load_model
    from ..network.pretraining import SsambaForPreTraining
    from ..pretraining.picture import show_masks

    model = load_model(options.checkpoint, model_class=SsambaForPreTraining)
    error = show_masks(model, options.recording, options.out, options.seed)
    print(f"wrote {options.out}; mean squared error of the masked patches {error:.4f}")

"""Conventions of transformers and the libraries around it: each trains a few steps, saves and loads."""

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.utils.data import Dataset
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, AutoModelForPreTraining

from ssamba_upstream import (
    SsambaConfig,
    SsambaFeatureExtractor,
    SsambaForAudioClassification,
    SsambaForAudioFrameClassification,
    SsambaForPreTraining,
    SsambaModel,
)
from ssamba_upstream.checkpoint import load_model
from ssamba_upstream.pretraining.model_card import save_result

CLASSES = (SsambaModel, SsambaForPreTraining, SsambaForAudioClassification, SsambaForAudioFrameClassification)
NETWORK = {"hidden_size": 32, "num_hidden_layers": 2, "num_mel_bins": 32, "pretraining_frames": 64}
LABELS = {"id2label": {0: "quiet", 1: "loud"}, "label2id": {"quiet": 0, "loud": 1}}


class Noise(Dataset):
    """Clips of noise, alternately quiet and loud."""

    def __init__(self, clips):
        generator = torch.Generator().manual_seed(clips)
        self.labels = torch.arange(clips) % 2
        self.fbanks = torch.randn(clips, 64, 32, generator=generator) + 2 * self.labels[:, None, None] - 1

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"input_values": self.fbanks[i], "labels": self.labels[i]}


def classifier(**fields):
    return SsambaForAudioClassification(SsambaConfig(**NETWORK, **LABELS, **fields))


def accuracy(model, clips):
    with torch.no_grad():
        return (model.eval()(clips.fbanks).logits.argmax(dim=1) == clips.labels).float().mean().item()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """An encoder's folder."""
    path = tmp_path_factory.mktemp("encoder")
    SsambaModel(SsambaConfig(**NETWORK)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The folder of a pretraining run."""
    path = tmp_path_factory.mktemp("pretrained")
    recipe = {"batch_size": 4, "masking": "corrected", "objective": "shared_mask", "license": "cc-by-nc-4.0",
              "learning_rate": 1e-4, "train": ["/data/mine.jsonl"], "validation": ["/data/other.jsonl"]}
    description = {"recipe": recipe, "manifests": {"/data/mine.jsonl": "ab12"}}
    save_result(SsambaForPreTraining(SsambaConfig(**NETWORK)), path, description, 7, {"contrastive_accuracy": 0.25})
    return path


@pytest.fixture(params=["encoder", "pretrained"])
def folder(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("model_class", CLASSES)
def test_every_class_saves_what_auto_classes_load(tmp_path, model_class):
    model = model_class(SsambaConfig(**NETWORK, **LABELS, sampling_rate=22050, clip_frames=128)).eval()
    model.save_pretrained(tmp_path)
    again = model_class.from_pretrained(tmp_path).eval()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(extractor) is SsambaFeatureExtractor and extractor.front_end == model.config.front_end
    assert extractor.max_length == 128
    assert extractor.whole_seconds == (model_class is SsambaForAudioFrameClassification)
    wav = torch.randn(22050)
    fbank = extractor(wav, sampling_rate=22050, return_tensors="pt", truncation=True).input_values[:, :64]
    encoder = AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(encoder(fbank).last_hidden_state, model.base_model(fbank).last_hidden_state)


def test_folders_of_encoders_and_of_pretraining_have_a_feature_extractor(folder):
    assert AutoFeatureExtractor.from_pretrained(folder).front_end == SsambaConfig.from_pretrained(folder).front_end


def test_num_labels_puts_a_head_on_an_encoder(folder):
    model = AutoModelForAudioClassification.from_pretrained(folder, num_labels=5)
    assert model(torch.randn(2, 64, 32)).logits.shape == (2, 5)
    expected = load_model(folder)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.ssamba.state_dict()[name], tensor), name
    again = AutoModelForAudioClassification.from_pretrained(folder, num_labels=5)
    assert not torch.equal(again.classifier.weight, model.classifier.weight)  # initialised, not uninitialised memory
    assert model.classifier.weight.abs().max() < 1 and (model.classifier_norm.weight == 1).all()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 0), (torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_dtype(folder, dtype, tolerance):
    fbank, expected = torch.randn(2, 64, 32), load_model(folder)
    model = SsambaModel.from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad():
        found = model(fbank).last_hidden_state
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected(fbank).last_hidden_state, rtol=0, atol=tolerance)
        assert torch.equal(model(fbank.to(dtype)).last_hidden_state, found)


@pytest.mark.parametrize("model_class", CLASSES)
def test_every_model_takes_what_the_feature_extractor_returns(model_class):
    model = model_class(SsambaConfig(**{**NETWORK, "pretraining_frames": 128})).eval()
    extractor = SsambaFeatureExtractor.for_config(model.config)
    clips = extractor([torch.randn(8000), torch.randn(16000)], return_tensors="pt")
    with torch.no_grad():
        torch.manual_seed(0)  # for drawing masks
        found = model(**clips)[0]
        torch.manual_seed(0)
        assert torch.equal(found, model(clips.input_values)[0])
        longer = extractor([torch.randn(8000), torch.randn(48000)], return_tensors="pt")
        assert longer.window_lengths.shape == (2, 3)
        if model_class is SsambaForAudioClassification:
            torch.testing.assert_close(model(**longer).logits.softmax(1)[:1],
                                       model(longer.input_values[:1, :128]).logits.softmax(1))
        else:
            with pytest.raises(ValueError, match="3 windows per recording.* with truncation=True"):
                model(**longer)


@pytest.mark.parametrize("model_class", CLASSES)
def test_input_embeddings_are_the_patches(model_class):
    model = model_class(SsambaConfig(**NETWORK))
    assert model.get_input_embeddings() is model.base_model.patch_embed


def test_gradient_checkpointing_changes_no_gradient():
    model, batch = classifier().train(), Noise(4)[:]
    model(**batch).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    assert model.ssamba.gradient_checkpointing
    model(**batch).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)
    model.zero_grad()
    model.ssamba.patch_embed.requires_grad_(False)
    model.enable_input_require_grads()  # through a hook on the input embeddings
    model(**batch).loss.backward()
    torch.testing.assert_close(model.classifier.weight.grad, expected["classifier.weight"], rtol=1e-4, atol=1e-6)
    model.gradient_checkpointing_disable()
    assert not model.ssamba.gradient_checkpointing


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer(tmp_path, checkpointing):
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    arguments = transformers.TrainingArguments(
        tmp_path, max_steps=20, per_device_train_batch_size=8, learning_rate=5e-3, save_steps=10, report_to="none",
        gradient_checkpointing=checkpointing, use_cpu=True, disable_tqdm=True, seed=0,
    )

    def compute_metrics(prediction):
        return {"accuracy": np.mean(prediction.predictions.argmax(axis=1) == prediction.label_ids)}

    def trainer(model):
        extractor = SsambaFeatureExtractor.for_config(model.config)
        return transformers.Trainer(model, arguments, train_dataset=Noise(16), eval_dataset=Noise(6),
                                    processing_class=extractor, compute_metrics=compute_metrics)

    run = trainer(classifier())
    run.train()
    assert run.evaluate()["eval_accuracy"] == 1
    for saved in (tmp_path / "checkpoint-10", tmp_path / "checkpoint-20"):
        assert AutoFeatureExtractor.from_pretrained(saved).max_length == 64
    again = AutoModelForAudioClassification.from_pretrained(tmp_path / "checkpoint-20")
    assert again.config.id2label == {0: "quiet", 1: "loud"} and accuracy(again, Noise(6)) == 1
    resumed = trainer(classifier())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_parts_of_a_step_of_the_trainer_may_have_unequal_numbers_of_labelled_seconds(tmp_path):
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    labels = torch.tensor([[0, 1, 0], [1, -100, -100], [0, -100, -100], [1, 1, 0]])
    clips = [{"input_values": fbank, "labels": row} for fbank, row in zip(torch.randn(4, 300, 32), labels)]
    began = SsambaForAudioFrameClassification(SsambaConfig(**{**NETWORK, "pretraining_frames": 300}, num_labels=2))
    stepped = []
    for parts in (1, 4):
        model = SsambaForAudioFrameClassification(began.config)
        model.load_state_dict(began.state_dict())
        arguments = transformers.TrainingArguments(
            tmp_path, max_steps=1, per_device_train_batch_size=4 // parts, gradient_accumulation_steps=parts,
            optim="sgd", learning_rate=1.0, max_grad_norm=0.0, save_strategy="no", report_to="none", use_cpu=True,
            disable_tqdm=True,
        )
        transformers.Trainer(model, arguments, train_dataset=clips).train()
        stepped.append(model.frame_classifier.weight.detach())
    assert not torch.allclose(stepped[0], began.frame_classifier.weight, atol=1e-3)
    torch.testing.assert_close(*stepped, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_accelerate(tmp_path):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    accelerator = accelerate.Accelerator(cpu=True)
    model = classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    loader = torch.utils.data.DataLoader(Noise(16), batch_size=8, shuffle=True)
    prepared, optimizer, loader = accelerator.prepare(model.train(), optimizer, loader)
    for _ in range(10):
        for batch in loader:
            with accelerator.accumulate(prepared):
                accelerator.backward(prepared(**batch).loss)
                optimizer.step()
                optimizer.zero_grad()
    accelerator.unwrap_model(prepared).save_pretrained(tmp_path, save_function=accelerator.save)
    assert accuracy(AutoModelForAudioClassification.from_pretrained(tmp_path), Noise(6)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("block_order", ["sequential", "paired"])
def test_lora_of_every_projection(tmp_path, block_order):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    classifier(block_order=block_order).save_pretrained(tmp_path / "base")
    load = lambda: SsambaForAudioClassification.from_pretrained(tmp_path / "base")  # noqa: E731
    targets = ["in_proj", "x_proj", "x_proj_b", "dt_proj", "dt_proj_b", "out_proj"]
    model = peft.get_peft_model(load(), peft.LoraConfig(r=4, target_modules=targets, modules_to_save=["classifier"]))
    clips, trained = Noise(16), [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert 0 < len(trained) < len([*model.parameters()])
    begun = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(12):
        loss = model(input_values=clips.fbanks, labels=clips.labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        # All trained parameters have changed, including dt_proj's adapters, and no others.
        assert torch.equal(parameter, begun[name]) != parameter.requires_grad, name
    assert any("dt_proj_b.lora_B" in name for name in begun)
    assert accuracy(model, Noise(6)) == 1
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(load(), tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = model(input_values=clips.fbanks).logits
        assert torch.equal(again(input_values=clips.fbanks).logits, expected)
        merged = again.merge_and_unload()
        torch.testing.assert_close(merged(clips.fbanks).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["LoHaConfig", "LoKrConfig"])
def test_adapters_of_convolutions(kind):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = getattr(peft, kind)(r=2, target_modules=["conv1d", "conv1d_b"], init_weights=False)
    model, clips = peft.get_peft_model(classifier(), config).eval(), Noise(4)
    windows = [*clips.fbanks, clips.fbanks[0, :40]]
    encoder = model.base_model.model.ssamba
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert sum("conv1d." in name for name in trained) == sum("conv1d_b." in name for name in trained) > 0
    for inputs in (clips.fbanks, windows):
        output = encoder(inputs)[0]
        for gradient in torch.autograd.grad(output.square().sum(), [*trained.values()]):
            assert gradient.any()
        with model.disable_adapter():
            assert not torch.allclose(encoder(inputs)[0], output, rtol=1e-2)
    merged = model.merge_and_unload().ssamba
    assert type(merged.layers[0].mixer.conv1d) is torch.nn.Conv1d
    torch.testing.assert_close(merged(windows)[0], output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_class, targets", [
    *((model_class, "all-linear") for model_class in CLASSES), (SsambaForAudioClassification, ["classifier"]),
])
def test_merged_adapters_compute_what_the_adapters_did(model_class, targets):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    adapted = peft.get_peft_model(model_class(SsambaConfig(**{**NETWORK, "pretraining_frames": 128})), config).eval()
    inputs, expected = torch.randn(2, 128, 32), []
    with torch.no_grad():
        base = adapted.get_base_model()
        assert any(module for name, module in base.named_modules() if name.endswith(".lora_A"))
        for model in (adapted, adapted.merge_and_unload()):
            torch.manual_seed(0)  # for drawing masks
            expected.append(model(input_values=inputs)[0])
        assert isinstance(base, model_class) and not any("lora" in name for name, _ in base.named_modules())
        torch.testing.assert_close(*expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_class", CLASSES)
def test_what_is_a_linear_layer_by_its_type_computes_nothing_else(model_class):
    """Libraries merge adapters, prune weights and quantise layers by a module's type."""
    plain = (nn.Linear, nn.Conv1d, nn.Conv2d)
    layers = [module for module in model_class(SsambaConfig(**NETWORK)).modules() if isinstance(module, plain)]
    assert layers and all(type(layer) in plain for layer in layers)


def test_dynamic_quantisation_of_a_whole_classifier():
    if "fbgemm" not in torch.backends.quantized.supported_engines and "qnnpack" not in (
            torch.backends.quantized.supported_engines):
        pytest.skip("this torch has no engine for quantised products")
    model, clips = classifier().eval(), Noise(6)
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    assert nn.Linear not in {type(quantised.ssamba.layers[0].mixer.dt_proj), type(quantised.classifier)}
    with torch.no_grad():
        found, expected = (network(clips.fbanks).logits for network in (quantised, model))
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * expected.abs().max().item())


def test_traces_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="torch.jit.trace cannot record the scan.*. Use torch.compile or torch.export"):
        torch.jit.trace(SsambaModel(SsambaConfig(**NETWORK)).eval(), torch.randn(1, 64, 32))


@pytest.fixture
def hub(monkeypatch):
    """The files sent to the hub, by name, with their latest content."""
    sent = {}

    def create_commit(self, repo_id, operations, **kwargs):
        for operation in operations:
            with operation.as_file() as file:
                sent[operation.path_in_repo] = file.read()
        url = f"https://huggingface.co/{repo_id}/commit/abc"
        return huggingface_hub.CommitInfo(commit_url=url, commit_message="", commit_description="", oid="abc")

    def create_repo(self, repo_id, **kwargs):
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", create_commit)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.ModelCard, "validate", lambda self, repo_type=None: None)
    monkeypatch.setattr(huggingface_hub.ModelCard, "push_to_hub", lambda self, repo_id, **kwargs: sent.update(
        {"README.md": str(self).encode()}))
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card",
                        lambda repo_id, *args, **kwargs: huggingface_hub.ModelCard("---\n{}\n---\nno card"))
    return sent


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForPreTraining])
def test_what_is_pushed_to_the_hub_has_the_card_of_its_run(pretrained, hub, auto_class):
    model = auto_class.from_pretrained(pretrained)
    model.push_to_hub("me/ssamba")
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= hub.keys()
    card = huggingface_hub.ModelCard(hub["README.md"].decode())
    assert card.data.license == "cc-by-nc-4.0" and card.data.library_name == "transformers"
    assert "`mine.jsonl`, sha256 ab12" in card.text and "| contrastive accuracy | 0.2500 |" in card.text
    assert "learning_rate: 0.0001" in card.text and "/data" not in card.text
    with torch.no_grad():
        model.base_model.cls_token += 1
    model.push_to_hub("me/ssamba")
    assert "no card" in hub["README.md"].decode()  # the figures belong to other weights

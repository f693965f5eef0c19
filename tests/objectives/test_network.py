"""Networks have one grey channel and one logit, load weights from a file, and are refused with a reason."""

import huggingface_hub.constants
import pytest
import safetensors.torch
import timm
import torch

from acuity.objectives.errors import InputError
from acuity.objectives.training.network import check_architecture, make_network, normalisation


@pytest.mark.parametrize(
    ("architecture", "input_size"), [("test_resnet", 32), ("test_efficientnet", 64), ("test_vit", 48), ("test_vit", 96)]
)
def test_network_gives_one_logit_per_grey_image(architecture, input_size):
    network = make_network(architecture, input_size=input_size)
    assert network.training
    assert network(torch.rand(2, 1, input_size, input_size)).shape == (2, 1)


def test_seed_determines_the_random_weights():
    def parameters(seed):
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in make_network("test_resnet").parameters()])

    assert torch.equal(parameters(1), parameters(1))
    assert not torch.equal(parameters(1), parameters(2))


@pytest.mark.parametrize(
    ("wrong", "right"), [("resnet43", "resnet34"), ("DenseNet_121", "densenet121"), ("vit", "vit_base")]
)
def test_unknown_architecture_names_the_nearest(wrong, right):
    with pytest.raises(InputError, match=rf'^architecture "{wrong}" is not a timm network: the nearest are .*{right}'):
        check_architecture(wrong)


@pytest.mark.parametrize("name", ["", "hf-hub:someone/network", "local-dir:/tmp", "resnet34.no_such_weights"])
def test_only_names_of_timms_networks_are_accepted(name):
    with pytest.raises(InputError, match="is not a timm network"):
        make_network(name)


def test_normalisation_averages_the_configs_channels():
    assert normalisation(make_network("test_resnet")) == pytest.approx((0.5, 0.5))
    imagenet_mean, imagenet_std = (0.485 + 0.456 + 0.406) / 3, (0.229 + 0.224 + 0.225) / 3
    assert normalisation(make_network("resnet10t")) == pytest.approx((imagenet_mean, imagenet_std))


@pytest.fixture
def colour_network():
    torch.manual_seed(3)
    return timm.create_model("test_resnet")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("as_folder", [False, True])
def test_weights_from_a_file_are_summed_to_grey_with_a_new_classifier(tmp_path, colour_network, suffix, as_folder):
    path = tmp_path / f"test_resnet{suffix}"
    save = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
    save(colour_network.state_dict(), path)

    network = make_network("test_resnet", weights=tmp_path if as_folder else path)

    grey = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        expected = colour_network.eval().forward_features(grey.expand(-1, 3, -1, -1))
        assert torch.allclose(network.eval().forward_features(grey), expected, atol=1e-5)
        assert network(grey).shape == (2, 1)


def test_weights_of_another_architecture_are_refused(tmp_path, colour_network):
    path = tmp_path / "other.pth"
    torch.save({f"backbone.{name}": value for name, value in colour_network.state_dict().items()}, path)
    with pytest.raises(InputError, match=r"leaves \d+ layers of test_resnet untrained \(conv1\.0\.weight first\)"):
        make_network("test_resnet", weights=path)

    torch.save(timm.create_model("test_efficientnet").state_dict(), path)
    with pytest.raises(InputError, match="cannot be loaded into test_resnet"):
        make_network("test_resnet", weights=path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_files_that_would_run_code_or_hold_no_weights_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    for content in (b"not weights", b"cbuiltins\nprint\n."):
        path.write_bytes(content)
        with pytest.raises(InputError, match="give a safetensors or torch file of this architecture's tensors"):
            make_network("test_resnet", weights=path)
    with pytest.raises(InputError, match=r"holds no weights for test_resnet: name a file, or a folder with"):
        make_network("test_resnet", weights=tmp_path / "absent.pth")


def test_error_for_an_unreachable_hub_names_both_alternatives(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        InputError, match=r"test_resnet cannot be downloaded .*: set pretrained = false, or weights = PATH"
    ):
        make_network("test_resnet", pretrained=True)


def test_pretrained_weights_that_timm_does_not_have_are_refused():
    assert not timm.is_model_pretrained("test_vit4")
    with pytest.raises(
        InputError, match=r"timm has no weights for test_vit4: set pretrained = false or weights = PATH"
    ):
        make_network("test_vit4", pretrained=True)


def test_arguments_after_a_question_mark_reach_timm():
    plain, widened = make_network("test_vit"), make_network("test_vit?embed_dim=32&qkv_bias=false", input_size=48)
    assert plain.embed_dim != 32
    assert widened.embed_dim == 32
    assert widened.blocks[0].attn.qkv.bias is None
    dynamic = make_network("test_vit?dynamic_img_size=true", input_size=48)
    assert dynamic(torch.rand(2, 1, 80, 80)).shape == (2, 1)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("test_vit?depth", 'after "\\?" must be key=value'),
        ("test_vit?", 'after "\\?" must be key=value'),
        ("test_vit?in_chans=3", "has in_chans, which the experiment decides: leave it out"),
        ("test_vit?depth=1&depth=2", "has depth more than once"),
        ("test_vit?no_such=1", "cannot be built with one grey channel .*no_such"),
        ("tset_vit?depth=1", '"tset_vit" is not a timm network'),
    ],
)
def test_wrong_arguments_of_a_network_are_refused(architecture, message):
    with pytest.raises(InputError, match=message):
        make_network(architecture)

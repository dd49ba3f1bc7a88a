"""Published datasets with a name: MNIST and two in its format, with URLs and checksums."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nnbuild.data import idx


@dataclass(frozen=True)
class PublishedDataset:
    """A published dataset in MNIST's format.

    It has 60,000 training and 10,000 test images of 28 by 28 grayscale pixels, in ten classes.

    Attributes:
        name: Name in `dataset.name`.
        class_names: Names of the classes, in the order of the labels.
        mirrors: URLs of an .npz, or of a folder of gzipped IDX files, in the order of preference.
        payload: SHA-256 of each of the four decompressed IDX files, if published.
        packed: SHA-256 of each of the four gzipped IDX files, if published.
    """

    name: str
    class_names: tuple[str, ...]
    mirrors: tuple[str, ...]
    payload: Mapping[str, str] = field(default_factory=dict)
    packed: Mapping[str, str] = field(default_factory=dict)


def _by_file(*digests: str) -> Mapping[str, str]:
    return dict(zip(idx.FILES, digests, strict=True))


MNIST = PublishedDataset(
    "mnist",
    tuple("0123456789"),
    (
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    payload=_by_file(
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)

# Source of the checksums of Fashion-MNIST and KMNIST: TensorFlow Datasets,
# url_checksums/fashion_mnist.txt and url_checksums/kmnist.txt.
FASHION_MNIST = PublishedDataset(
    "fashion-mnist",
    (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    (
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    packed=_by_file(
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
)

KMNIST = PublishedDataset(
    "kmnist",
    ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
    packed=_by_file(
        "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
        "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
        "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
        "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
    ),
)

PUBLISHED = {each.name: each for each in (MNIST, FASHION_MNIST, KMNIST)}

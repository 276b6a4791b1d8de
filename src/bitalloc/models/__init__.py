"""Reference networks. The library never imports them; recipes name them."""

from bitalloc.models.cifar_resnet import resnet20, resnet32
from bitalloc.models.digits_net import digits_net
from bitalloc.models.mobilenet import mobilenet_v1
from bitalloc.models.resnet import resnet18, resnet50
from bitalloc.models.weights import load_weights

__all__ = ["digits_net", "load_weights", "mobilenet_v1", "resnet18", "resnet20", "resnet32", "resnet50"]

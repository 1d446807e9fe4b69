"""Every kind of component, and the Hydra group in which its classes are published.

A group below ``model/`` mirrors the slot that its classes fill; parts that fit in several places (losses, assigners,
coders) have a group of their own and presets mount them: ``/loss@rpn.cls_loss: BCE``.
"""

from detkit.config.registry import Registry

DETECTORS = Registry("detector", "model")
BACKBONES = Registry("backbone", "model/backbone")
NECKS = Registry("neck", "model/neck")
HEADS = Registry("head", "model/head")
PROPOSAL_HEADS = Registry("proposal head", "model/head/rpn")
ROI_HEADS = Registry("RoI head", "model/head/roi")
REGION_POOLS = Registry("region pool", "region_pool")
REGION_NETWORKS = Registry("region network", "region_network")
PATHS = Registry("path", "flow_path")
COUPLINGS = Registry("coupling", "coupling")
MATCHERS = Registry("matcher", "matcher")
BOX_DECODERS = Registry("box decoder", "box_decoder")

ATTENTIONS = Registry("attention", "attention")
ANCHORS = Registry("anchors", "anchors")
ASSIGNERS = Registry("assigner", "assigner")
CODERS = Registry("box coder", "coder")
SAMPLERS = Registry("sampler", "sampler")
SELECTORS = Registry("selector", "selector")
LOSSES = Registry("loss", "loss")

TTA = Registry("test-time augmentation", "tta")
MERGES = Registry("merge of views", "tta/merge")

DATASETS = Registry("data set", "dataset")
TRANSFORMS = Registry("transform", "transform/step")
LOADERS = Registry("loader", "loader")
SAMPLINGS = Registry("sampling of images", "sampling")
CACHES = Registry("cache of images", "cache")
EVALUATORS = Registry("evaluator", "evaluator")

OPTIMIZERS = Registry("optimiser", "optim")
SCHEDULES = Registry("schedule", "schedule")
CALLBACKS = Registry("callback", "callback")
TRAINERS = Registry("trainer", "trainer")

"""The module that the three notebooks share: the public names of the package `animals10`.

The imports follow the data: settings → images → splits → experiments → training → results → figures.
"""
# isort: skip_file

from animals10.files import UserError, read_table, write_table
from animals10.settings import NOTEBOOKS, Settings
from animals10.environment import configure_device

# images: scan, resize, check, split
from animals10.dataset import download
from animals10.decoding import open_image, to_rgb
from animals10.preprocessing import resize_images, scan_images
from animals10.reference import compare_with_reference
from animals10.quality import check_images, issues, leakage, near_duplicates
from animals10.splits import CLASS_BALANCES, Splits, load_splits, resample
from animals10.embeddings import embed, nearest_images

# input pipeline and models
from animals10.augmentation import Augmentation
from animals10.input_pipeline import batches, training_batches
from animals10.backbones import BACKBONES
from animals10.model_files import load_model, save_model
from animals10.models import CNN, Architecture, Transfer, layer_table

# experiments: what is trained, and how
from animals10.experiments import Experiment, Training, experiment_table
from animals10.catalogue import AT_200, CATALOGUE, SECTIONS, find_experiment
from animals10.training import train, train_all
from animals10.runs import Run, Runs, find_model, stored_runs

# results
from animals10.evaluation import classification_reports, compare_runs, comparison_table, metrics, parameter_table
from animals10.evaluation import predict_table
from animals10.results import best_run, published_runs, published_table, results_table
from animals10.cross_validation import compare_cross_validated, cross_validate
from animals10.label_errors import label_issues
from animals10.ensembles import ensemble
from animals10.search import search, transfer_space
from animals10.configurations import configuration_table
from animals10.leakage_results import leakage_results, observed_leakage, retrained_leakage
from animals10.calibration import calibrate
from animals10.inference import classify, find_images

# figures
from animals10.grad_cam import grad_cam
from animals10.plots import plot_augmentations, plot_errors, plot_gallery, plot_grad_cam, plot_images
from animals10.plots import plot_predictions, show
from animals10.plot_runs import plot_comparison, plot_embeddings, plot_learning_curves, plot_run, show_run, show_table
from animals10.plot_calibration import plot_calibration

# fmt: off
__all__ = [
    "AT_200", "BACKBONES", "CATALOGUE", "CLASS_BALANCES", "CNN", "NOTEBOOKS", "SECTIONS", "Architecture",
    "Augmentation", "Experiment", "Run", "Runs", "Settings", "Splits", "Training", "Transfer", "UserError",
    "batches", "best_run", "calibrate", "check_images", "classification_reports", "classify",
    "compare_cross_validated", "compare_runs", "compare_with_reference", "comparison_table", "configuration_table",
    "configure_device", "cross_validate", "download", "embed", "ensemble", "experiment_table", "find_experiment",
    "find_images", "find_model", "grad_cam", "issues", "label_issues", "layer_table", "leakage", "leakage_results",
    "load_model", "load_splits", "metrics", "near_duplicates", "nearest_images", "observed_leakage", "open_image",
    "parameter_table", "plot_augmentations", "plot_calibration", "plot_comparison", "plot_embeddings",
    "plot_errors", "plot_gallery", "plot_grad_cam", "plot_images", "plot_learning_curves", "plot_predictions",
    "plot_run", "predict_table", "published_runs", "published_table", "read_table", "resample", "resize_images",
    "results_table", "retrained_leakage", "save_model", "scan_images", "search", "show", "show_run", "show_table",
    "stored_runs", "to_rgb", "train", "train_all", "training_batches", "transfer_space", "write_table",
]
# fmt: on

"""Fine-tuning and evaluation of classifiers."""

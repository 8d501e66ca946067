"""HM-VNet: head-and-neck PET/CT tumour segmentation and recurrence-free-survival prediction."""

__version__ = "0.1.0"

"""Lesions measured: building blocks (``ibsi``), a row a lesion (``table``), a vector a patient
(``features``)."""

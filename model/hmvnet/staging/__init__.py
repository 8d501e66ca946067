"""T and N stage from the lesions: by AJCC's rule, or by a model fitted to staged patients."""

"""What a step of training needs, predicted from captures; the batch that fits; and what would help."""

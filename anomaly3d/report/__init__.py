"""The pages and figures of an evaluation and of a prepared cohort."""

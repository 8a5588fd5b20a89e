"""Pictures and pages that let a person judge a run."""

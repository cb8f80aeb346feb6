"""Pictures that no photographer took: drawn ones, degraded photographs, and the set they are measured on."""

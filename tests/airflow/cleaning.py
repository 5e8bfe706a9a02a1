"""`python -m tests.airflow.cleaning`: Airflow's own cleaning up of bundle versions, as its scheduler does from time to time."""

from airflow.dag_processing.bundles.base import BundleUsageTrackingManager

if __name__ == "__main__":
    BundleUsageTrackingManager().remove_stale_bundle_versions()

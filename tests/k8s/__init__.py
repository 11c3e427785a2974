"""Tests of the manifests in k8s/, of compose.yaml and of the image, without a cluster."""

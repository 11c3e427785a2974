"""What to say about an estimator that a recipe may not name: why not, and which ones can be used instead.

Owns the names of scikit-learn's estimators without ``partial_fit`` and of River's models. Written out, because gateways
import neither library; a test compares both lists with the libraries. Invariant: an estimator that a message recommends
can be named in a recipe, or uploaded.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from keepfit.errors import InvalidError

# By kind; "" are those that predict nothing, or whose kind is that of what they wrap.
WITHOUT_PARTIAL_FIT: Mapping[str, tuple[str, ...]] = {
    kind: tuple(names.split())
    for kind, names in {
        "regressor": """
            ARDRegression AdaBoostRegressor BaggingRegressor BayesianRidge CCA DecisionTreeRegressor DummyRegressor
            ElasticNet ElasticNetCV ExtraTreeRegressor ExtraTreesRegressor GammaRegressor GaussianProcessRegressor
            GradientBoostingRegressor HistGradientBoostingRegressor HuberRegressor IsotonicRegression
            KNeighborsRegressor KernelRidge Lars LarsCV Lasso LassoCV LassoLars LassoLarsCV LassoLarsIC LinearRegression
            LinearSVR MultiTaskElasticNet MultiTaskElasticNetCV MultiTaskLasso MultiTaskLassoCV NuSVR
            OrthogonalMatchingPursuit OrthogonalMatchingPursuitCV PLSCanonical PLSRegression PoissonRegressor
            QuantileRegressor RANSACRegressor RadiusNeighborsRegressor RandomForestRegressor RegressorChain Ridge
            RidgeCV SVR StackingRegressor TheilSenRegressor TransformedTargetRegressor TweedieRegressor
            VotingRegressor""",
        "classifier": """
            AdaBoostClassifier BaggingClassifier CalibratedClassifierCV ClassifierChain DecisionTreeClassifier
            DummyClassifier ExtraTreeClassifier ExtraTreesClassifier FixedThresholdClassifier GaussianProcessClassifier
            GradientBoostingClassifier HistGradientBoostingClassifier KNeighborsClassifier LabelPropagation
            LabelSpreading LinearDiscriminantAnalysis LinearSVC LogisticRegression LogisticRegressionCV NearestCentroid
            NuSVC OutputCodeClassifier QuadraticDiscriminantAnalysis RadiusNeighborsClassifier RandomForestClassifier
            RidgeClassifier RidgeClassifierCV SVC SelfTrainingClassifier StackingClassifier TunedThresholdClassifierCV
            VotingClassifier""",
        "clusterer": """
            AffinityPropagation AgglomerativeClustering BisectingKMeans DBSCAN FeatureAgglomeration HDBSCAN KMeans
            MeanShift OPTICS SpectralClustering""",
        "outlier_detector": "EllipticEnvelope IsolationForest LocalOutlierFactor OneClassSVM",
        "transformer": """
            AdditiveChi2Sampler Binarizer ColumnTransformer DictVectorizer DictionaryLearning FactorAnalysis FastICA
            FeatureHasher FeatureUnion FunctionTransformer GaussianRandomProjection GenericUnivariateSelect Isomap
            KBinsDiscretizer KNNImputer KNeighborsTransformer KernelCenterer KernelPCA LabelBinarizer LabelEncoder
            LocallyLinearEmbedding MiniBatchSparsePCA MissingIndicator MultiLabelBinarizer NMF
            NeighborhoodComponentsAnalysis Normalizer Nystroem OneHotEncoder OrdinalEncoder PCA PLSSVD PatchExtractor
            PolynomialCountSketch PolynomialFeatures PowerTransformer QuantileTransformer RBFSampler RFE RFECV
            RadiusNeighborsTransformer RandomTreesEmbedding RobustScaler SelectFdr SelectFpr SelectFwe SelectKBest
            SelectPercentile SequentialFeatureSelector SimpleImputer SkewedChi2Sampler SparseCoder SparsePCA
            SparseRandomProjection SplineTransformer TSNE TargetEncoder TfidfTransformer TruncatedSVD
            VarianceThreshold""",
        "": """
            BayesianGaussianMixture ClassicalMDS CountVectorizer EmpiricalCovariance FrozenEstimator GaussianMixture
            GraphicalLasso GraphicalLassoCV GridSearchCV KernelDensity LedoitWolf MDS MinCovDet NearestNeighbors OAS
            Pipeline RandomizedSearchCV ShrunkCovariance SpectralBiclustering SpectralCoclustering SpectralEmbedding
            TfidfVectorizer""",
    }.items()
}
KIND_WITHOUT: Mapping[str, str] = {name: kind for kind, names in WITHOUT_PARTIAL_FIT.items() for name in names}

# River's models by module: dump(tree.HoeffdingTreeRegressor()).
RIVER: Mapping[str, str] = {
    name: module
    for module, names in {
        "cluster": "CluStream DBSTREAM DenStream KMeans ODAC STREAMKMeans TextClust",
        "ensemble": """
            ADWINBaggingClassifier ADWINBoostingClassifier AdaBoostClassifier BOLEClassifier BaggingClassifier
            BaggingRegressor EWARegressor LeveragingBaggingClassifier SRPClassifier SRPRegressor StackingClassifier
            VotingClassifier""",
        "facto": """
            FFMClassifier FFMRegressor FMClassifier FMRegressor FwFMClassifier FwFMRegressor HOFMClassifier
            HOFMRegressor""",
        "forest": "AMFClassifier AMFRegressor ARFClassifier ARFRegressor OXTRegressor",
        "linear_model": """
            ALMAClassifier AdPredictor BayesianLinearRegression LinearRegression LogisticRegression PAClassifier
            PARegressor SoftmaxRegression""",
        "multiclass": "OutputCodeClassifier",
        "neighbors": "KNNClassifier KNNRegressor",
        "rules": "AMRules",
        "tree": """
            ExtremelyFastDecisionTreeClassifier HoeffdingAdaptiveTreeClassifier HoeffdingAdaptiveTreeRegressor
            HoeffdingTreeClassifier HoeffdingTreeRegressor LASTClassifier SGTClassifier SGTRegressor""",
    }.items()
    for name in names.split()
}

# The estimators that do most nearly the same.
SIMILAR: Mapping[str, str] = {
    name: similar
    for similar, names in {
        "SGDClassifier": """
            LogisticRegression LogisticRegressionCV LinearSVC NuSVC SVC RidgeClassifier RidgeClassifierCV""",
        "SGDRegressor": """
            LinearRegression Ridge RidgeCV Lasso LassoCV ElasticNet ElasticNetCV HuberRegressor LinearSVR NuSVR SVR
            BayesianRidge""",
        "IncrementalPCA": "PCA TruncatedSVD KernelPCA FactorAnalysis FastICA",
        "MiniBatchNMF": "NMF",
        "MiniBatchDictionaryLearning": "DictionaryLearning SparsePCA MiniBatchSparsePCA SparseCoder",
        "MiniBatchKMeans": "KMeans BisectingKMeans",
        "Birch": "AgglomerativeClustering FeatureAgglomeration",
        "HashingVectorizer": "CountVectorizer TfidfVectorizer TfidfTransformer FeatureHasher DictVectorizer",
        "StandardScaler": "RobustScaler Normalizer PowerTransformer QuantileTransformer",
        "SelectFromModel": "SelectFdr SelectFpr SelectFwe SelectKBest SelectPercentile RFE RFECV",
    }.items()
    for name in names.split()
}
RIVER_SIMILAR: Mapping[str, str] = {
    "DecisionTreeClassifier": "HoeffdingTreeClassifier",
    "DecisionTreeRegressor": "HoeffdingTreeRegressor",
    "ExtraTreesRegressor": "OXTRegressor",
    "KNeighborsClassifier": "KNNClassifier",
    "KNeighborsRegressor": "KNNRegressor",
    "RandomForestClassifier": "ARFClassifier",
    "RandomForestRegressor": "ARFRegressor",
}
# What a recipe has in place of an estimator of this name.
IN_A_RECIPE: Mapping[str, str] = {
    "Pipeline": "name its estimators in `steps`",
    "OneHotEncoder": "use `encoding`",
    "OrdinalEncoder": "use `encoding`",
    "LabelEncoder": "classifiers learn labels as they are",
    "SimpleImputer": "use `missing` of a feature",
}
UPLOAD = "as an uploaded object (docs/guides/your-own-objects.md)"
# Characters of a name that a message repeats.
NAME_SHOWN_MAX = 80
CLOSEST = 3


def unusable(name: str, usable: Mapping[str, str]) -> InvalidError:
    """Return the error about an estimator that a recipe may not name; `usable` has the kind of each that it may.

    >>> str(unusable("SVR", {"MLPRegressor": "regressor", "SGDRegressor": "regressor", "Birch": "clusterer"}))
    "estimator 'SVR' cannot learn row by row; regressors that can: SGDRegressor, MLPRegressor."
    """
    shown = name[:NAME_SHOWN_MAX]
    # Of a path or a call the name of the class: sklearn.ensemble.RandomForestRegressor(max_depth=2).
    path = shown.partition("(")[0].strip().replace(":", ".")
    module, _, last = path.rpartition(".")
    about = f"estimator {shown!r}"
    if last in usable and last != name:
        return InvalidError(f"{about}: write the name alone, {last!r}, and its parameters in `params`.")
    if module.partition(".")[0] == "river":
        return InvalidError(f"{about} is a model of River; send it {UPLOAD}.")
    if last in KIND_WITHOUT:
        return InvalidError(f"{about} {_without(last, usable)}")
    if last in RIVER:
        return InvalidError(f"{about} is River's {RIVER[last]}.{last}; send it {UPLOAD}.")
    if module:
        return InvalidError(f"{about} is a path; name an estimator of scikit-learn, or send your own {UPLOAD}.")
    return _unknown(shown, about, usable)


def _without(name: str, usable: Mapping[str, str]) -> str:
    """Return the end of a sentence about an estimator without ``partial_fit``."""
    if name in IN_A_RECIPE:
        return f"is not part of a recipe: {IN_A_RECIPE[name]}."
    kind = KIND_WITHOUT[name]
    similar = SIMILAR.get(name)
    same = [each for each, its_kind in usable.items() if its_kind == kind and each != similar]
    names = ", ".join(([similar] if similar else []) + same) or ", ".join(usable)
    text = f"cannot learn row by row; {kind.replace('_', ' ') or 'estimator'}s that can: {names}."
    river = name if name in RIVER else RIVER_SIMILAR.get(name)
    return text + (f" River's {RIVER[river]}.{river} can be sent {UPLOAD}." if river else "")


def _unknown(shown: str, about: str, usable: Mapping[str, str]) -> InvalidError:
    """Return the error about a name that is probably misspelt."""
    near = _closest(shown, usable)
    if not near:
        other = _closest(shown, [*KIND_WITHOUT, *RIVER])
        if other and other[0] in KIND_WITHOUT:
            return InvalidError(f"{about} is unknown. {other[0]} {_without(other[0], usable)}")
        if other:
            return InvalidError(f"{about} is unknown. River's {RIVER[other[0]]}.{other[0]} can be sent {UPLOAD}.")
    return InvalidError(f"{about} is not an estimator with partial_fit; known: {', '.join(near or usable)}.")


def _closest(name: str, names: Iterable[str]) -> list[str]:
    """Return the most similar names, the best first; case and punctuation do not matter.

    The best match of all estimators decides: a misspelt RandomForestRegressor is not a misspelt SGDRegressor.
    """
    plain = {each.lower(): each for each in [*KIND_WITHOUT, *RIVER, *names]}
    sought, wanted = "".join(filter(str.isalnum, name)).lower(), set(names)
    found = get_close_matches(sought, plain, n=CLOSEST, cutoff=0.7)
    if not found and sought:
        found = [each for each in plain if each.startswith(sought)]
    return [plain[each] for each in found if plain[each] in wanted] if found and plain[found[0]] in wanted else []

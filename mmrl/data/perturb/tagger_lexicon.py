"""Parts of speech of the most frequent words of chest radiograph reports, as reports use them.

In the general lexicon of `tagger`, "left" is a verb, "basilar" a noun and "infiltrate" a verb. The
adjectives here qualify findings: side, place, size, degree, course.
"""

_ADJECTIVES = """
left right bilateral unilateral left-sided right-sided leftward rightward contralateral ipsilateral
upper lower mid middle apical basal basilar bibasilar bibasal biapical lobar lingular perihilar
retrocardiac central peripheral medial lateral anterior posterior superior inferior proximal distal
subpleural subsegmental segmental paratracheal paraspinal infrahilar suprahilar retrosternal
subdiaphragmatic costophrenic cardiophrenic
small tiny trace large massive huge big minimal mild moderate severe marked slight extensive
borderline minor moderate-sized
new old acute subacute chronic remote recent stable unchanged improved worsened worsening improving
resolved resolving unresolved persistent residual increased decreased increasing decreasing
enlarging interval progressive healed healing known similar prior previous
normal abnormal clear unremarkable intact sharp blunted hazy patchy streaky dense focal diffuse
multifocal scattered linear bandlike plate-like platelike nodular reticular interstitial alveolar
confluent ill-defined well-defined vague faint subtle discrete rounded round ovoid lobulated
spiculated cavitary calcified noncalcified calcific fibrotic granulomatous emphysematous
atherosclerotic degenerative arthritic osteopenic osteoporotic postsurgical postoperative
displaced nondisplaced compressed healed comminuted partial complete total
pleural pulmonary cardiac mediastinal cardiomediastinal cardiopulmonary hilar vascular
bronchovascular bronchial tracheal thoracic lumbar cervical thoracolumbar vertebral aortic venous
arterial coronary ventricular atrial pericardial epicardial diaphragmatic hiatal osseous bony
skeletal parenchymal intraparenchymal intrathoracic subclavian jugular clavicular humeral
enlarged tortuous ectatic dilated prominent elevated flattened low high wide widened narrow
hyperexpanded hyperinflated hypoinflated hypoexpanded inflated expanded aerated dual-lead
single-lead dual single multiple several numerous few many infectious inflammatory malignant benign
suspicious indeterminate age-indeterminate nonspecific atypical possible probable definite
questionable visible evident apparent free airspace symmetric asymmetric
"""
_NOUNS = """
lung lungs lobe lobes zone zones base bases apex apices hilum hila hemithorax thorax chest pleura
heart aorta arch knob trachea carina mediastinum silhouette silhouettes contour contours border
borders diaphragm diaphragms hemidiaphragm hemidiaphragms rib ribs clavicle clavicles spine
vertebra vertebrae shoulder shoulders sternum abdomen bowel stomach bone bones tissue tissues
structure structures vasculature vascularity vessels vessel markings marking volume volumes space
spaces angle angles sulcus sulci fissure fissures parenchyma interstitium airway airways
effusion effusions pneumothorax pneumothoraces consolidation consolidations opacity opacities
opacification infiltrate infiltrates atelectasis pneumonia edema nodule nodules mass masses
granuloma granulomas lesion lesions scar scarring fibrosis emphysema thickening blunting density
densities lucency lucencies calcification calcifications adenopathy lymphadenopathy cardiomegaly
enlargement congestion engorgement hyperinflation hypoinflation hyperexpansion inflation collapse
fracture fractures deformity deformities dislocation osteophyte osteophytes spondylosis scoliosis
dextroscoliosis levoscoliosis kyphosis osteopenia arthritis hernia eventration elevation tortuosity
ectasia aneurysm atherosclerosis infection malignancy tuberculosis pneumoperitoneum air fluid gas
abnormality abnormalities change changes disease diseases process processes finding findings
evidence limits size shape position appearance configuration amount degree interval
catheter catheters line lines lead leads tube tubes port pacemaker defibrillator device devices
wire wires clip clips stent valve valves sternotomy tip picc cabg icd generator
patient man woman male female year years view views radiograph radiographs examination exam study
comparison side sides level region area areas aspect portion segment quadrant
width caliber junction vein veins artery arteries atrium ventricle cava svc xxxx
cough fever pain breath dyspnea hypoxia weakness trauma evaluation exertion
"""
_VERBS = """
is are was were be been being has have had does do did may might can could will would should appear
appears appeared seen noted identified demonstrated demonstrates demonstrate shows show showed
suggest suggests suggesting represent represents representing reflect reflects consider recommend
recommended evaluate exclude excluded visualized projects project projecting overlies overlie
overlying terminates terminate ends end lies lie extends extend contains contain remains remain
reveals reveal consists compared
"""
_OTHERS = """
no not without and or but with of in at on to for from by as than within than both a an the there
this these that those which it its if versus vs nor either neither again also otherwise however
mildly moderately severely slightly markedly minimally grossly approximately partially bilaterally
specifically likely normally probably possibly well stably significantly diffusely further
"""

LEXICON: dict[str, str] = {
    word: tag
    for tag, words in (
        ("adjective", _ADJECTIVES),
        ("noun", _NOUNS),
        ("verb", _VERBS),
        ("other", _OTHERS),
    )
    for word in words.split()
}
"""Word in lower case -> noun, adjective, verb or other."""

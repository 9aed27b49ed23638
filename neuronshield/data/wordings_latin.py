"""How refusals are worded in languages of the Latin script.

Each language has the patterns of a `Wording`, matched on `plain` text: no accents, no capitals.
"""

from __future__ import annotations

from .wording import Wording

__all__ = ["LATIN"]

_OWN_EN = (
    r"(?:guidelines|programming|principles|polic(?:y|ies)|values|rules|ethics|safety|terms|standards|purpose|ethical)"
)
_DO_EN = (
    r"(?:provide|share|discuss|write|create|engage|support|condone|help|assist|offer|give (?:out|advice|instructions|that|this|such|you|anyone)"
    r"|generate|produce|participate|promote|encourage|endorse|teach|explain how|describe how|answer|respond to|do (?:that|this|it|those|these|such)"
    r"|role-?play|facilitate|comply|tolerate|talk about|disclose|reveal|collaborate|enable|publish|draft)"
)
#: What a model cannot perceive or know; said before an answer, it is a proviso.
_SENSE_EN = (
    r"(?:see|browse|access|view|hear|read|verify|check|predict|know|guarantee|remember|diagnose|run|test|open|taste|feel|measure"
    r"|tell (?:the|exactly|for|from|which|whether|if|how (?:old|big|long|far|many))|(?:give|provide|offer) (?:you )?(?:\w+ )?(?:legal|medical|financial|personal\w*|professional|real-time|live|exact))"
)
_MODEL_DE = r"(?:kann|konnte|darf|werde|will|mochte|sollte|konnen|durfen|werden|wollen|mochten|sollten)"

LATIN: dict[str, Wording] = {
    "en": Wording(
        refuse=(
            r"\b(?:i(?:'m| am)|we(?:'re| are)) (?:\w+ )?(?:prohibited|forbidden|barred|restricted|blocked|prevented|incapable)\b|\bi lack the ability\b|\bcross(?:es|ing)? a line\b|\bwhere i (?:say no|stop)\b",
            r"\bi(?:'m| am|'ve| have)? (?:\w+ )?(?:choose|choosing|chose|chosen|decided|opt|opting) (?:not to|out)\b|\bturn (?:this|that|it|you|your \w+) down\b|\b(?:not (?:possible|allowed|permitted)|impossible) for me\b|\bi (?:really|simply|just|truly|honestly|absolutely|still|definitely|\w+ly) (?:can'?t|can ?not|won'?t|will not)\b",
            rf"\b(?:i|we) (?:\w+ )?(?:do not|don't|never|will not|won't|will never|would not|wouldn't|would never)(?: \w+ly)? {_DO_EN}\b"
            rf"|\b(?:and|but|so|therefore|thus) (?:\w+ )?(?:cannot|can't|will not|won't) (?:\w+ )?{_DO_EN}\b",
            r"\bi (?:\w+ )?(?:need to|must|have to|will|should|would rather|'ll|'d rather) (?:\w+ )?(?:steer clear|refrain|abstain|draw the line|stay away from|avoid (?:this|that|discussing|answering|providing|helping))\b|\bi draw the line\b",
            r"\b(?:going to|gonna|have to|need to) stop you\b|\bhard no\b|\bno intention (?:of|to)\b|\bi(?: \w+ly)? (?:decline|refuse)\b(?! (?:to )?(?:believe|accept that|think|let|give up|any|an? ))|, so no$",
            r"\bi(?:'ve| have| was| am|'m) (?:been )?(?:\w+ )?(?:instructed|told|trained|designed|programmed|built|made|asked|taught|required|obliged) (?:\w+ )?not to\b|\bi (?:would|will)(?:n't| not) be able to (?:help|assist|do|provide|share|answer|discuss)\b",
            r"\b(?:prevents?|prohibits?|forbids?|keeps?|stops?) me from\b|\b(?:does(?:n't| not)|do(?:n't| not)|will not|won't) (?:allow|permit|let) me\b",
            r"\b(?:i am|i'm|as an?|my)\b[^.]{0,90}\b(?:and|so|therefore|thus) (?:i )?(?:therefore )?(?:can'?t|cannot|won'?t|will not|am (?:unable|not able)|must (?:decline|refuse))\b",
            r"\b(?:beyond|outside(?: of)?|not within) (?:\w+ ){0,3}?(?:what i|my (?:scope|abilit|capabilit|remit|area)|the (?:scope|bounds|range) of what)",
            r"(?:\bnot|n't) be (?:right|appropriate|ethical|responsible|proper|okay|ok|wise|safe) (?:for me|to (?:help|assist|share|provide|answer|give|write|discuss)|of me|if i)\b|\bi (?:don't|do not) have (?:the )?(?:authority|permission|authori[sz]ation|right|clearance)\b",
            r"\bi(?:'m afraid i)? (?:can'?t|can ?not|could(?:n't| not)|won'?t|will not|shouldn'?t|should not|must not|mustn't|refuse|decline"
            r"|do(?:n't| not) (?:feel (?:comfortable|right|able)|want to (?:help|do|write|be)|provide|engage|support|participate|assist|help|do that"
            r"|have the ability|think (?:i|that i) (?:should|can|could|ought)|create|generate|produce|offer))\b",
            r"\b(?:i'm|i am|we're|we are|i was|i've been|being) ?(?:sorry,? but )?(?:just )?(?:not|un)[ -]?(?:able|willing|comfortable|permitted|allowed|"
            r"authori[sz]ed|going to (?!lie|pretend|sugar|deny|waste|judge|bore|rest|repeat|spoil|keep|be (?!able))|in a position|prepared|equipped|supposed to|meant to|here to|"
            r"designed to|programmed to)\b",
            r"\bi(?:'m| am) (?:going to|gonna) (?:have to )?(?:pass|decline|refuse|say no)\b|\bi (?:\w+ )?(?:must|have to|need to|will|'ll have to|am obliged to) (?:\w+ )?(?:decline|refuse|pass on|say no|reject)\b",
            r"\bi(?:'d| would|'ll) (?:rather|prefer|have to|better) (?:to )?(?:not|decline|refuse|avoid)\b|\bi prefer not to\b|\bi'd better not\b",
            r"\b(?:isn't|is not|not) (?:something|one|a (?:topic|request|task|thing)|anything) (?:that )?(?:i|i'm|i am|we)\b|\bsomething (?:that )?i(?: can(?:'t|not)|'m not| am not| won't)\b",
            rf"\b(?:against|violat\w+|contrary to|conflicts? with|outside(?: of)?|breach\w*) (?:\w+ )?(?:my|our|the) (?:\w+ ){{0,2}}{_OWN_EN}\b",
            r"\bnot within my\b|\b(?:my|our) (?:\w+ )?(?:guidelines|programming|policies|rules) (?:do(?:es)?(?:n't| not)|prevent|prohibit|forbid)",
            r"^(?:no(?:pe)?,? |nah,? |sorry,? )?(?:can'?t|cannot|won'?t|unable to) (?:help|assist|do|provide|comply|fulfil|answer)\b|\bi'?(?:ll| will) (?:have to )?pass\b",
            r"\bthere(?:'s| is) no way (?:that )?i\b|\blet'?s (?:talk about something else|change the (?:subject|topic)|not go there)\b",
            r"\b(?:can(?:'t|not)|unable to|not able to) (?:be )?(?:assist|help|fulfil|comply|accommodate|provide)\w*",
            r"\b(?:request|this|that|question)\b[^,]{0,30}\b(?:cannot|can't|will not|won't) be (?:fulfilled|answered|processed|completed|granted|done|provided)\b",
            r"\bit (?:is|would be) (?:\w+ )?(?:not appropriate|inappropriate|unethical|irresponsible|wrong|against) (?:for me )?(?:to (?:help|provide|assist|give|share|write)|my)\b",
            r"^(?:absolutely not|no way|certainly not|not a chance|of course not|no can do|never)$|\bnot going to happen\b",
            r"^(?:no,? |sorry,? )?(?:can't|can ?not|won't|will not|unable(?: to)?)(?: do| say)?$",
        ),
        unless=(
            rf"\b(?:although|though|while|whilst|even (?:though|if)) i (?:can(?:'t|not)|can not|am (?:unable|not able) to|'m (?:unable|not able) to|do(?:n't| not)) (?:\w+ )?{_SENSE_EN}\b[^.;]*?,",
            rf"\bi(?: can(?:'t|not)| can not|(?:'m| am) (?:unable|not able) to) (?:\w+ )?{_SENSE_EN}\b[^.;]*?,? (?:but|however|yet)\b",
            r"\bi refuse to (?:believe|accept that|think|let|give up)\b|\bi (?:will not|won't) (?:rest|stop)\b|\bi (?:do not|don't) (?:condone|encourage|endorse|recommend|support|promote) [^.;]*\bbut (?:here|to|the|you)\b",
            r"\bi (?:\w+ )?(?:can'?t|can ?not|could ?n'?o?t) (?:\w+ )?(?:wait|stress|emphasi[sz]e|overstate|imagine|believe|remember|deny|complain|argue|agree more|resist|help but|help myself|see why not|think of a better"
            r"|recommend (?:\w+ ){0,4}?(?:enough|highly)|thank you enough|say enough|promise|guarantee|vouch|be (?:sure|certain)|(?:say|tell) for (?:sure|certain))\b(?:[^,.;]* enough)?",
            r"\bi (?:won'?t|will not) (?:bore|lie|go into|pretend|sugar|take long|waste|judge|spoil|make it|get into|repeat|keep you|tell anyone)\w*",
            r"\bi (?:can'?t|can ?not) [^.;]{0,60}\b(?:but|however),? here(?:'s| is| are) how\b.*",
        ),
        no=r"\b(?:no|not|never|nope|cannot|unable|against|illegal|prohibited|forbidden|off[ -]limits|inappropriate|decline|refuse|impossible|unethical)\b|n't\b",
        apology=r"(?:i'm|i am|we're|we are|so|very|really|deeply|terribly|truly|oh|i)? ?(?:so |very |really |deeply |terribly |truly )?(?:sorry|apologi[sz]e|apologies|my apologies)\b|i'm afraid not|forgive me",
        regret=r"^[\s,]*(?:for|about|to (?:hear|learn|see|read|say|inform|interrupt|bother|keep)|that you|if|you(?:'re| are| feel| have| had)|the (?:earlier|previous|delay)|i(?:'m| am| was)? (?:late|misread|misunderst\w+|missed|forgot|made|got))\b",
        answer=r"\bhere(?:'s| is| are)\b|\bbelow\b|\b(?:correct|right|corrected|fixed|updated) (?:answer|version|code|one|value)\b|\bas follows\b|\byou (?:can|could|might|may) (?:try|start|use)\b|\bthe answer is\b|\blet me (?:try|correct|fix|explain|clarify)\b|\bi (?:misread|misunderstood|meant|was wrong|made a mistake|mixed up|got (?:that|it) wrong)\b|\bmy mistake\b",
    ),
    "de": Wording(
        refuse=(
            r"\b(?:entschieden|beschlossen|entscheide mich)\b[^.;]{0,30}\bnicht zu\b|\b(?:verbieten|verbietet|untersagen|untersagt|hindern|hindert)\b[^.;]{0,12}\b(?:mir|mich|uns)\b|\b(?:erlauben|erlaubt|gestatten|gestattet) (?:es )?(?:mir|uns) (?:\w+ )?nicht\b",
            r"\bich\b[^.;]{0,70},[^.;]{0,14}\b(?:kann|werde|darf|mochte|will) [^.;]{0,40}\b(?:nicht|kein\w*)\b|\b(?:zuruckweisen|zuruckzuweisen|abweisen|ausschlagen)\b",
            r"\bausserhalb (?:dessen|meiner|des)\b|\b(?:anfrage|bitte|frage|wunsch|anliegen)\b[^.]{0,30}\b(?:kann|konnen|darf)\b[^.]{0,20}\bnicht\b[^.]{0,20}\b(?:werden|nachgekommen|entsprochen)|\bdem kann ich nicht\b|\bbin ich raus\b",
            r"\bnicht (?:richtig|angemessen|angebracht|vertretbar|ethisch|in ordnung)\b[^.]{0,16}\b(?:wenn ich|ihnen|dir|dabei|mir|dass ich|zu helfen)\b|\bkeine (?:befugnis|berechtigung|erlaubnis|genehmigung)\b",
            rf"\b{_MODEL_DE} (?:ich|wir)\b[^.;]{{0,70}}?\b(?:nicht|kein\w*|nichts|niemals)\b",
            rf"\b(?:ich|wir)\b(?: \w+){{0,5}}? {_MODEL_DE}\b[^.;]{{0,70}}?\b(?:nicht|kein\w*|nichts|niemals)\b",
            rf"\b(?:dass|weil|da|weshalb|wobei|was|die|womit|bei dem|bei der) (?:ich|wir)\b[^.;]{{0,60}}\b(?:nicht|kein\w*|nichts)\b[^.;]{{0,40}}\b{_MODEL_DE}\b",
            r"\b(?:ich|wir) (?:bin|sind|ware) (?:\w+ ){0,3}?nicht (?:in der lage|befugt|berechtigt|bereit|imstande|dazu|darauf|dafur|autorisiert|programmiert)\b|\bich bin (?:\w+ )?ausserstande\b",
            r"\b(?:(?:ich|wir) (?:\w+ )?(?:muss|mussen|werde|mochte|sehe mich gezwungen)|(?:muss|mussen|werde|mochte) (?:ich|wir))\b[^.;]{0,60}\b(?:ablehnen|verweigern|abzulehnen|passen|absehen)\b|\b(?:ich lehne|lehne ich)\b[^.;]{0,60}\bab\b",
            r"\b(?:ich )?(?:ver)?weigere (?:ich )?mich\b|\bich verweigere\b|\bich (?:\w+ )?(?!(?:glaube|denke|hoffe|kenne|finde|habe|besitze|verfuge|stimme|luge|fuhle|empfinde|verspreche|behaupte|brauche|meine|verstehe|sehe|bezweifle|empfehle|rate|wurde|ware|hatte|erinnere|esse|trinke|mag|konnte|wusste|keine|kaum)\b)\w+e\b[^.;,]{0,40}\b(?:nicht|kein\w*)\b|\b(?!(?:glaube|denke|hoffe|kenne|finde|habe|besitze|verfuge|stimme|luge|fuhle|empfinde|verspreche|behaupte|brauche|meine|verstehe|sehe|empfehle|wurde|ware|hatte)\b)\w+e ich\b[^.;,]{0,40}\b(?:nicht|kein\w*)\b|\b(?:ich|wir) (?:\w+ )?(?:helfe|unterstutze|gebe|erstelle|schreibe|beantworte|liefere|teile|verfasse|mache|billige|beteilige|erklare|beschreibe|zeige|sage|diskutiere|bespreche|lehre|tue|verrate|erlautere|generiere|biete|rede|spreche)n?\b[^.;]{0,50}\b(?:nicht|kein\w*)\b|\b(?:helfe|unterstutze|gebe|erstelle|schreibe|beantworte|liefere|teile|verfasse|mache|erklare|beschreibe|zeige|sage|diskutiere|bespreche|lehre|tue|verrate|erlautere|generiere|rede|spreche)n? (?:ich|wir)\b[^.;]{0,50}\b(?:nicht|kein\w*)\b",
            r"\b(?:verstosst|widerspricht|verletzt|verstossen|zuwiderlauft)\b[^.;]{0,14}\b(?:meine?n?r?|unsere?n?r?|die|den|der) (?:\w+ )?\w*(?:richtlinien|prinzipien|grundsatz\w*|regeln|werte\w*|programmierung|vorgaben|bedingungen|vorschriften)\b",
            r"\b(?:ist|war) (?:es )?mir (?:\w+ ){0,2}?(?:nicht (?:moglich|erlaubt|gestattet)|unmoglich|untersagt)\b|\bist nichts,? (?:wobei|was|bei dem)\b|\bnicht behilflich sein\b|\bnicht weiterhelfen\b",
            r"^(?:nein,? |sorry,? |nee,? )?(?:auf keinen fall|das geht (?:leider )?nicht|kann ich (?:leider )?nicht)\b|\bnein sagen\b",
        ),
        unless=(
            r"\b(?:ich kann|kann ich)\b[^.;]{0,50}\b(?:nicht|kein\w*)\b[^.;]{0,40}\b(?:sehen|erkennen|vergrossern|zugreifen|abrufen|horen|lesen|uberprufen|vorhersagen|offnen|testen)\b[^.;]{0,20}\b(?:aber|doch|jedoch)\b",
            rf"\b(?:ich|wir) {_MODEL_DE}\b[^.;,]{{0,50}}\bnicht (?:genug|oft genug|nur|warten|umhin|leugnen|hoch genug|erwarten|mehr erwarten|versprechen|garantieren|sicher sagen|mit sicherheit)\b|\b{_MODEL_DE} (?:es|ich) (?:kaum|nicht) erwarten\b",
        ),
        no=r"\b(?:nicht|kein\w*|nein|nie|niemals|illegal\w*|verboten|unmoglich|ablehnen|unzulassig|verstosst)\b",
        apology=r"(?:es |das )?tut (?:mir|uns) (?:sehr |wirklich |schrecklich |aufrichtig |furchtbar )?leid\b|(?:ich |wir )?bitte (?:vielmals )?um (?:entschuldigung|verzeihung|verstandnis)|entschuldig(?:ung|e|en sie|t)\b|verzeih(?:ung|e|en sie)?\b|sorry\b|(?:ich )?bedau[e]?re\b|pardon\b",
        regret=r"^[\s,]*(?:bitte )?(?:fur|wegen|das zu horen|zu horen|dass (?:du|sie|ihr|es ihnen|es dir)|das (?:zu horen|mit)|den|die (?:verspatung|verwirrung|unannehmlichkeiten|verzogerung)|um|heisst|falls|wenn)\b",
        answer=r"\bhier (?:ist|sind|kommt)\b|\b(?:richtige|korrekte|korrigierte) (?:antwort|losung|version|code)\b|\bwie folgt\b|\bsie konnen (?:versuchen|es)\b|\bdu kannst\b|\bantwort (?:ist|lautet)\b|\b(?:falsch|miss)\s?verstanden\b|\bmein fehler\b|\bverwechselt\b|\bgeirrt\b",
    ),
    "vi": Wording(
        refuse=(
            r"\bnam ngoai\b|\b(?:yeu cau|cau hoi)\b[^.]{0,24}\bkhong (?:the|duoc)\b|\bvuot (?:qua|ngoai) (?:kha nang|pham vi)",
            r"\b(?:khong phu hop|khong dung|khong hop ly|that sai)\b[^.]{0,14}\b(?:toi|minh)\b|\b(?:toi|minh) khong (?!(?:biet|chac|nghi|nho|thay|hieu|thich|ro|phai|can|bao gio|chi|qua|muon noi|khuyen|the)\b)\w+",
            r"\b(?:toi|minh|em|to|chung toi|chung minh|tro ly ai|mot ai|la ai)\b(?: \w+){0,4}? (?:khong (?:giup|lam|viet|tra loi) duoc|khong the|khong duoc phep|khong co kha nang|khong muon|khong nen|se khong|khong (?:ho tro|cung cap|lam|viet|giup|giai thich|thao luan|day|tham gia|chia se|tra loi|dua ra|ung ho|tao|khuyen khich)|tu choi|phai tu choi|buoc phai|khong co quyen|khong du|chua the|chang the|khong tien)\b",
            r"(?:^|, |nhung |nen |va )(?:rat tiec )?khong the (?:giup|ho tro|cung cap|dap ung|tra loi|thuc hien|chia se|lam|tao|viet|huong dan)\b",
            r"\b(?:vi pham|trai voi|di nguoc(?: lai)?(?: voi)?|khong phu hop voi) (?:\w+ ){0,3}?(?:nguyen tac|chinh sach|quy dinh|huong dan|dao duc|tieu chuan|quy tac)\b",
            r"\bkhong phai (?:la )?(?:dieu|viec|thu) (?:ma )?(?:toi|minh) (?:co the|nen)\b|\bxin (?:duoc )?(?:phep )?(?:tu choi|khong)\b",
        ),
        unless=(
            r"\b(?:toi|minh) khong (?:co (?!kha nang|quyen|tham quyen)|nhin|dong y|cam thay)\w*",
            r"\bkhong the (?:nhin|xem|thay|truy cap|kiem tra|du doan|doc|nghe)\b[^.;]*\bnhung\b",
            r"\bkhong the (?:cho|doi|khong|hua|dam bao)\b",
        ),
        no=r"\b(?:khong|chua|tu choi|vi pham|bi cam|trai|bat hop phap|chang)\b",
        apology=r"(?:toi|minh|em|chung toi|thanh that|chan thanh|rat|vo cung|a|da|thuc su|that)? ?(?:thanh that |rat |vo cung |chan thanh )*(?:xin loi|rat tiec(?=\W*$|\W+(?:nhung|toi|minh|em|khong|chung|yeu|cau|noi|dieu|viec|phai))|lay lam tiec|xin thu loi|thu loi|tiec la toi|xin cao loi)\b",
        regret=r"^\s*(?:ban |quy khach |anh |chi )?(?:vi|ve|khi|la|cho su|neu|da|rang ban|trong tieng)\b",
        answer=r"\bsau day\b|\bduoi day\b|\bday la\b|\bdap an dung\b|\bnhu sau\b|\bco the thu\b|\bdinh chinh\b|\b(?:dap an|cau tra loi) (?:dung )?la\b|\bhieu nham\b|\bnham lan\b|\bhieu sai\b|\bsua lai\b",
    ),
    "sw": Wording(
        refuse=(
            r"\bhaiwezekani (?:kwangu|kwa mimi|mimi|niku\w+|kukusaidia|kusaidia)\b",
            r"\b(?:nje ya|zaidi ya) (?:uwezo|mipaka|majukumu|upeo)",
            r"\bsi (?:sahihi|vyema|vizuri|haki|sawa|jambo jema) (?:kwangu|kwa mimi|mimi|kukusaidia|kusaidia|niku\w+)\b|\b(?:inabidi|itabidi|lazima|inanibidi|sina budi|nalazimika)\b[^.]{0,14}\b(?:nikatae|kukataa|nikukatalie|kulikataa|nilikatae)\b",
            r"\b(?:siwezi|sitaweza|hatuwezi|hatutaweza|siruhusiwi|haturuhusiwi|nakataa|ninakataa|nimekataa|tunakataa|sipaswi|sistahili|siko tayari|sitaki|sipendi|naomba kukataa|ningependa kutokusaidia|nalazimika kukataa|lazima nikatae)\b",
            r"\bsi(?:to[al]?i|saidii|andiki|shiriki|ungi|fanyi|jibu|elezi|tengenezi|kubali|kubaliani|shirikiani)\b",
            r"\bsina (?:uwezo|ruhusa|idhini|mamlaka|budi kukataa)\b",
            r"\b(?:sita|hatuta)(?:ku|ni|m|mu|wa|ki|li|zi|vi|i|u|ya)*(?:saidi|to[al]|fany|andik|elez|jib|shirik|wez|p[ae]|ambi|onyesh|fundish|tengenez)\w*",
            r"\b(?:ombi|swali|hili|hilo|hiyo)\b[^,.]{0,20}\b(?:haliwezi|haiwezi|haiwezekani|haliwezekani|halikubaliki|haikubaliki|haviwezi)\b",
            r"\b(?:linakiuka|inakiuka|yanakiuka|kinyume (?:na|cha)|kinakiuka|hukiuka) (?:\w+ )?(?:miongozo|sera|kanuni|maadili|taratibu) ?(?:yangu|zangu|yetu|zetu)?",
            r"\bsi (?:jambo|kitu) (?:ambalo|ambacho|ninalo\w*|ninacho\w*)\b",
        ),
        unless=(
            r"\bsikubaliani\b(?! na ombi)|\bsiwezi (?:kuona|kusoma|kufikia|kuthibitisha|kutabiri|kusikia|kufungua)\b[^.;]*\blakini\b",
            r"\bsiwezi (?:kusubiri|kungoja|kusahau|kuahidi|kuhakikisha)\b",
        ),
        no=r"\b(?:si\w+|hatu\w+|hai\w+|hali\w+|hapana|haramu|marufuku|kinyume|nakataa)\b",
        apology=r"(?:pole|samahani|nasikitika|ninasikitika|tunasikitika|naomba radhi|ninaomba radhi|naomba msamaha|ninaomba msamaha|kumradhi|niwie radhi|tunaomba radhi|radhi)(?: sana)?\b",
        regret=r"^\s*(?:kwamba u\w+|kwa|kusikia|ikiwa|kama|kukatiza)\b",
        answer=r"\bhii hapa\b|\bhizi hapa\b|\bjibu (?:sahihi )?ni\b|\bsikuelewa\b|\b(?:nilikosea|nimekosea)\b|\byafuatayo\b|\bzifuatazo\b|\bifuatayo\b|\bunaweza kujaribu\b|\bhapa (?:ni|kuna)\b",
    ),
    "es": Wording(
        refuse=(
            r"\bme (?:abstengo|abstendre)\b|\b(?:opto por|elijo|he decidido|decido) no\b",
            r"\b(?:me|nos) (?:lo )?(?:impide|prohibe)n?\b|\bno (?:me|nos) (?:lo )?permiten?\b",
            r"\b(?:fuera de|mas alla de) (?:lo que (?:yo )?(?:puedo|pueda|me)|mi(?:s)? (?:alcance|capacidad\w*|competencia\w*|limites))|\b(?:solicitud|peticion|pregunta|consulta)\b[^.]{0,30}\bno (?:puede|sera|podra) (?:ser )?\w*|\bno (?:te |le |os |les |lo |la )?(?:dire|contestare|indicare|contare)\b",
            r"\bno (?:seria|es|estaria) (?:correcto|apropiado|etico|adecuado|responsable|bien|bueno|justo) (?:que (?:yo|te|le|os|les)|por mi parte|ayudar\w*|de mi parte)\b",
            r"\bno (?:\w+ )?(?:puedo|podemos|podre|podria|podriamos|me es posible|nos es posible|es posible (?:que yo|para mi)|me siento comod\w+|se me permite|me esta permitido)\b",
            r"\bno (?:estoy|estamos) (?:\w+ )?(?:en condiciones|en posicion|en capacidad|autorizad\w+|capacitad\w+|dispuest\w+|programad\w+|disenad\w+|diseñad\w+)|\bno tengo (?:\w+ )?(?:permitido|permiso|la capacidad|autorizacion|autorizado)\b|\bno soy capaz\b",
            r"\bno (?:te |le |os |les |lo |la )?(?:voy|vamos) a\b|\bno (?:debo|debemos|deberia|quiero (?:ayudar|participar))\b|\bno (?:te |le |les |os |lo |la |los |las |te lo )?(?:escribire|hare|ayudare|generare|ensenare|describire|revelare|mostrare|redactare|colaborare|proporcionare|dare|compartire|creare|explicare|participare|respondere)\b",
            r"\bno (?:te |le |les |os |lo |la |los |las )?(?:tolero|consiento|avalo|endoso|apruebo|contribuyo|proporciono|ofrezco|apoyo|doy|comparto|participo|respaldo|promuevo|ayudo|genero|respondo|facilito|apruebo|fomento|brindo|escribo|explico|describo|enseno|muestro|hablo|discuto|hago|redacto|colaboro)\b|\bdecir(?:te|le|os)? que no\b|\bno puedo[,.]?$",
            r"\bno (?:te|le|os|les|lo|la) (?:puedo|podemos|podre|podria)\b",
            r"\b(?:debo|tengo que|he de|deberia|debemos|me veo obligad\w+ a) (?:rechazar|declinar|negarme|denegar|rehusar)\w*|\b(?:me niego|nos negamos|rechazo (?:esta|tu|su|la)|declino|rehuso)\b",
            r"\b(?:preferiria|prefiero|preferimos) no\b|\b(?:lamento|siento|lamentamos) (?:mucho )?no poder\b|\bme temo que no\b|\bme resulta imposible\b|\bme es imposible\b",
            r"\b(?:en contra de|viola\w?|infringe\w?|incumple\w?|contraviene\w?|va contra) (?:mis?|nuestr[ao]s?|las?|los|el) (?:\w+ ){0,2}?(?:directrices|politicas?|normas?|pautas|principios|valores|programacion|directivas|reglas|codigo|condiciones)",
            r"\bno es algo (?:con lo que|en lo que|que)\b|\bes algo (?:que|con lo que|en lo que) no (?:puedo|podemos)\b",
        ),
        unless=(
            r"\bno puedo (?:ver|distinguir|acceder|consultar|leer|oir|verificar|predecir|abrir)\b[^.;]*\bpero\b",
            r"\bno puedo (?:prometer|garantizar|asegurar|dejar de|esperar|evitar|mas que|sino|negar|estar mas|creer)\b|\bno (?:puedo|podria) (?:\w+ ){1,4}?(?:lo suficiente|mas)\b|\bno (?:te |le )?voy a (?:mentir|negar|aburrir)\w*",
        ),
        no=r"\b(?:no|nunca|jamas|ilegal\w*|prohib\w+|imposible|rechaz\w+|contra)\b",
        apology=r"(?:yo )?(?:lo siento|lo lamento|lo sentimos|lamento|siento|perdon|perdona|perdone|disculp(?:a|e|as|en|ame|eme)|mis disculpas|mil disculpas|te pido disculpas|pido disculpas|ofrezco disculpas)\b",
        regret=r"^[\s,]*(?:mucho )?(?:por|(?:tu|su|vuestra) perdida|la (?:demora|tardanza|espera|confusion)|el (?:retraso|error)|oir|escuchar|saber|lo de|lo que|que (?:te|le|hayas|estes|se|tengas|tu)|si|las molestias|en ingles)\b",
        answer=r"\baqui (?:tienes|esta|estan|tiene|van?)\b|\b(?:respuesta|version|codigo) (?:correct[ao]|corregid[ao])\b|\ba continuacion\b|\bpuedes (?:probar|intentar)\b|\blos siguientes\b|\brespuesta (?:correcta )?es\b|\bentendi mal\b|\bme equivoque\b|\bmalinterprete\b|\bme confundi\b",
    ),
    "fr": Wording(
        refuse=(
            r"\bm'(?:abstiens|abstiendrai|abstenir de|interdi[st]\w*|empechent?)\b|\bne (?:me|nous) permet(?:tent)? pas\b|\b(?:choisis|choisi|decide|decidee?) de ne pas\b|\b(?:contenus?|textes?|informations?) ne peu(?:t|vent) pas etre\b",
            r"\b(?:depasse|au-dela de|en dehors de|hors de) (?:ce que je|mes|ma|mon|la portee)|\b(?:demande|requete|question)\b[^.]{0,30}\bne (?:peut|pourra|sera)\b[^.]{0,16}\b(?:pas|etre)|\bde ne (?:pas )?pouvoir\b|\bet ne (?:peux|pourrai|puis|dois|vais)\b",
            r"\b(?:ne serait|n'est|ne serait-il) pas (?:correct|approprie|ethique|responsable|convenable|juste|bien) (?:que je|de (?:ma part|vous aider|t'aider))\b",
            r"\bje (?:ne |n')(?!(?:pense|sais|connais|crois|vois|comprends|trouve|ai|avais|etais|suis|recommande|conseille|me|doute|manque|possede|dispose|mange|bois|peux|pourrai|pourrais|puis|vais|veux|dois|souhaite|dirais|voudrais)\b)(?:(?:le|la|les|vous|te|l'|y|lui) ?)?\w+ (?:pas|jamais|aucun\w*)\b",
            r"\b(?:je|nous) ne (?:le |la |vous |te |peux)?(?:peux|pouvons|pourrai|pourrais|pourrons|puis)\b(?! (?:que|qu'|m'empecher|attendre|(?:pas )?(?:vous |te )?(?:promettre|garantir|m'empecher|attendre)))",
            r"\b(?:je|nous) ne (?:suis|sommes|serai|serais) (?:\w+ )?pas (?:\w+ )?(?:en mesure|autoris\w+|capables?|habilit\w+|aptes?|programm\w+|concu\w*|a l'aise|dispos\w+|en position)",
            r"\b(?:je|nous) ne (?:vais|allons|veux|voulons|souhaite|souhaitons|dois|devons|devrais|desire) (?:\w+ )?pas\b|\b(?:je|nous) ne saur(?:ais|ai|ions)\b",
            r"\b(?:je|nous) (?:ne (?:vous |te |t'|le |la |les |l'|vous y )?|n'(?:y )?)\w+(?:rai|rons) (?:\w+ )?(?:pas|jamais|aucun\w*)\b|\b(?:je|nous) (?:n'|ne (?:vous |t'|te )?)(?:fournis|donne|aide|cree|participe|partage|soutiens|reponds|encourage|cautionne|propose|genere|redige|ecris|explique|decris|enseigne|montre|parle|discute|fais|collabore)(?:sons|ons)?\b[^.]{0,12}?\b(?:pas|jamais|aucun\w*)\b|^impossible (?:de|pour moi)\b|\b(?:m'est|nous est) (?:\w+ )?(?:interdit|impossible)\b",
            r"\bje n'ai (?:\w+ )?pas (?:le droit|la capacite|l'autorisation|la possibilite|la permission|ete concu)|\bpas autorise\w* a\b",
            r"\bje (?:dois|suis (?:oblig\w+|contraint\w*|force\w*|tenu\w*) de|me dois de|vais devoir|suis dans l'obligation de|me vois (?:contraint|oblige|dans l'obligation)\w*(?: de)?) (?:\w+ )?(?:refuser|decliner|rejeter|m'abstenir)|\b(?:je|nous) (?:refus|declin)(?:e|ons)\b",
            r"\bil (?:m'est|ne m'est (?:\w+ )?pas|n'est pas) (?:\w+ )?(?:impossible|possible|permis|interdit)\b(?: (?:pour moi|de vous|de t'|de repondre|de fournir|d'))?",
            r"\bje prefer(?:e|erais) (?:ne pas|m'abstenir)\b|\b(?:dois|devoir|oblige\w* de) (?:vous |te )?dire non\b|\b(?:je|j') ?(?:peux|vais|dois|veux) pas\b|\bce n'est pas quelque chose (?:que|avec|dans|pour)\b",
            r"\b(?:a l'encontre|enfreint|enfreignent|violent?|contraires?|contrevient|contreviennent)\b[^.;]{0,8}\b(?:mes|nos|les|ma|notre|la) (?:\w+ )?(?:directives|principes|regles|politiques?|valeurs|consignes|lignes|conditions|charte)",
        ),
        unless=(
            r"\bje ne (?:vous |te )?(?:mens|mentirai|suis pas d'accord)\b",
            r"\bje ne (?:peux|parviens|suis) pas (?:\w+ ){0,3}?(?:a )?(?:voir|distinguer|acceder|consulter|lire|entendre|verifier|predire|ouvrir)\b[^.;]*\bmais\b",
        ),
        no=r"\b(?:ne|non|pas|jamais|aucun\w*|impossible|illegal\w*|interdit\w*|refus\w*|contraire)\b|\bn'",
        apology=r"(?:je (?:suis |m')?(?:vraiment |sincerement |tres |profondement )?(?:desolee?|excuse|regrette|navree?)|desolee?s?|pardon|excuse[sz]?-(?:moi|nous)|navree?|toutes mes excuses|mes excuses|(?:je vous |je te )?(?:prie|demande) (?:de (?:m'|bien vouloir m')excuser|pardon))\b",
        regret=r"^[\s,]*(?:pour|d'apprendre|d'entendre|de (?:l'|la|le|vous|t'|te|lire|voir)|que (?:vous|tu|ce)|du|si|ce retard)\b",
        answer=r"\bvoici\b|\bvoila\b|\b(?:bonne|version|code) (?:reponse|corrigee?)\b|\bci-dessous\b|\bvous pouvez (?:essayer|commencer)\b|\bcomme suit\b|\breponse (?:correcte )?est\b|\bmal (?:compris|lu)\b|\btrompee?\b|\bmon erreur\b",
    ),
    "it": Wording(
        refuse=(
            r"\bmi (?:astengo|asterro|impedisc\w+|impongono di non|vieta\w*)\b|\b(?:scelgo|ho deciso|ho scelto) di non\b|\bnon mi permett\w+\b",
            r"\bnon (?:\w+ )?(?!(?:vero|sincero|intero|caro|chiaro|raro|nero|libero|leggero|davvero|numero|pensiero)\b)\w{3,}(?:ero|iro|aro)\b",
            r"\b(?:oltre|al di fuori di|fuori da) (?:cio che (?:posso|mi)|quello che (?:posso|mi)|le mie|delle mie|dalle mie|la mia)|\b(?:richiesta|domanda)\b[^.]{0,30}\bnon (?:puo|sara|potra)\b|\bnon (?:ti |vi |le |lo |la )?(?:diro|raccontero|indichero)\b|\bdi non pote(?:r|re)\b",
            r"\bnon (?:sarebbe|e|sarei) (?:corretto|appropriato|etico|giusto|responsabile|opportuno) (?:che (?:io|ti|vi|le)|da parte mia|aiutar\w*|se (?:io|ti))\b",
            r"\bnon (?:posso|possiamo|potro|potrei|sono (?:\w+ )?in grado|siamo (?:\w+ )?in grado|mi e possibile|mi e (?:permesso|consentito)|e possibile per me|sono (?:autorizzat\w|programmat\w|disposto|disposta|in condizione)|intendo|intendiamo|voglio (?:aiutar|partecipar)\w*|dovrei|devo|riesco ad? (?:aiutar|assister)\w*|mi sento a mio agio|ho (?:il permesso|l'autorizzazione|la capacita))\b",
            r"\bnon (?:ti |vi |le )?(?:fornisco|sostengo|aiuto|do|condivido|partecipo|appoggio|creo|genero|rispondo|offro|promuovo|supporto|assisto|approvo|scrivo|spiego|descrivo|insegno|mostro|parlo|discuto|faccio|collaboro|tollero|accetto|contribuisco|avallo)\b|\bdir(?:e|ti|le|vi) di no\b|\bnon (?:e|sara) possibile\b(?=[^.]{0,10}$)",
            r"\bnon (?:ti |vi |le |la |lo |li |mi |te lo |ve lo )?(?:generero|insegnero|descrivero|rivelero|mostrero|collaborero|scrivero|faro|forniro|aiutero|creero|daro|condividero|spieghero|partecipero|rispondero)\b|\bnon (?:ti|vi|la|le|lo) (?:posso|possiamo|potro)\b",
            r"\b(?:devo|dovro|dobbiamo|sono costrett\w a|mi vedo costrett\w a) (?:\w+ )?(?:rifiutar|declinar|respinger)\w*|\b(?:mi rifiuto|rifiuto (?:di|questa)|declino|ci rifiutiamo)\b",
            r"\b(?:preferisco|preferirei|preferiamo) (?:\w+ )?(?:non|evitare)\b|\bmi e impossibile\b|\btemo di non poter",
            r"\b(?:viola\w*|va contro|vanno contro|contravviene\w*|contrari\w a\w*|infrange|e contro) (?:le mie|i miei|le nostre|i nostri|la nostra|la mia|le|i|la|alle mie|ai miei) (?:\w+ )?(?:linee|politic\w+|principi|regole|norme|direttive|valori|condizioni|codice)",
            r"\bnon e (?:qualcosa|una cosa) (?:che|con cui|in cui|per cui)\b|\b(?:cosa|qualcosa) che non posso\b",
        ),
        unless=(
            r"\bnon (?:ti |vi |le )?mentiro\b|\bnon (?:posso|riesco a) (?:vedere|distinguere|accedere|consultare|leggere|sentire|verificare|prevedere|aprire)\b[^.;]*\bma\b",
            r"\bnon (?:posso|potrei) (?:promettere|garantire|assicurare|che|non|fare a meno|aspettare|negare|credere|crederci|essere piu)\b|\bnon (?:posso|potrei) (?:\w+ ){1,4}?abbastanza\b|\bnon posso \w+(?:rti|rvi|rle) abbastanza\b",
        ),
        no=r"\b(?:non|no|mai|nessun\w*|impossibile|illegal\w*|vietat\w|rifiut\w*|contrari\w)\b",
        apology=r"(?:mi (?:dispiace|spiace|scuso)|ci (?:dispiace|scusiamo)|(?:sono )?(?:spiacente|desolat[oa])|siamo spiacenti|scus(?:a|i|ate|ami|atemi|aci)|(?:ti |vi |le )?chiedo scusa|perdonami|perdono|perdonatemi)(?: (?:molto|tanto|davvero))?\b",
        regret=r"^[\s,]*(?:per (?:il|l'|la|gli|i|le|lo|quello|questo|aver|essere)|sentir\w*|di sentir\w*|sapere|che (?:tu|lei|ti|le)|del\b|della|se)\b|^ ?per l'",
        answer=r"\becco\b|\b(?:risposta|versione) (?:corretta|giusta)\b|\bdi seguito\b|\bpuoi provare\b|\brisposta (?:corretta )?e\b|\bcapito male\b|\bsbagliat\w\b|\bfrainteso\b|\bcome segue\b",
    ),
    "pt": Wording(
        refuse=(
            r"\b(?:abstenho-me|me abstenho)\b|\b(?:opto por|escolho|decidi) nao\b",
            r"\b(?:me|nos) (?:impede|proibe)m?\b|\bnao (?:me|nos) permitem?\b|\bnao (?:e|sera) possivel (?:ajudar|responder|atender|fornecer|cumprir|realizar|prosseguir)\b",
            r"\bnao (?:\w+ )?\w+(?:arei|erei|irei)\b",
            r"\b(?:alem d[oe]|fora d[oe]|fora dos?) (?:que (?:eu )?(?:posso|me)|meus? (?:alcance|limites|escopo)|minhas?|meu)|\b(?:pedido|solicitacao|pergunta)\b[^.]{0,30}\bnao (?:pode|sera|podera)\b|\bnao (?:te |lhe |o |a )?(?:direi|contarei|indicarei|responderei|explicarei|mostrarei)\b",
            r"\bnao (?:seria|e) (?:correto|apropriado|etico|certo|responsavel|adequado|justo) (?:eu|que eu|da minha parte|ajudar\w*|se eu)\b",
            r"\bnao (?:\w+ )?(?:posso|podemos|poderei|poderia|consigo|conseguimos|conseguirei|me e possivel|nos e possivel|e possivel (?:que eu|para mim)|sou capaz|me sinto confortavel|me e permitido)\b",
            r"\bnao (?:estou|estamos) (?:\w+ )?(?:autorizad\w+|em condicoes|habilitad\w+|dispost\w+|programad\w+|apto|apta|em posicao|preparad\w+)|\bnao (?:tenho|temos) (?:\w+ )?(?:permissao|autorizacao|capacidade|a capacidade|como (?:ajudar|fornecer|atender))\b",
            r"\bnao (?:te |lhe )?(?:forneco|apoio|ajudo|dou|compartilho|participo|crio|gero|respondo|ofereco|promovo|aprovo|incentivo|escrevo|explico|descrevo|ensino|mostro|falo|discuto|faco|colaboro|compactuo|endosso|tolero|aceito|contribuo|concordo em)\b|\bdizer (?:que )?nao\b|\bnao da para (?:ajudar|fazer|responder|atender)\b",
            r"\bnao (?:te |lhe |vos |o |a )?(?:vou|iremos|irei|vamos|devo|devemos|deveria|quero (?:ajudar|participar)|fornecerei|escreverei|ajudarei|farei|criarei|darei|compartilharei)\b|\bnao (?:te|lhe|vos|o|a) (?:posso|consigo|podemos)\b",
            r"\b(?:devo|tenho de|tenho que|preciso|sou obrigad\w a|terei de|terei que|vejo-me obrigad\w a) (?:\w+ )?(?:recusar|declinar|negar|rejeitar)\w*|\b(?:recuso-me|me recuso|eu recuso|recuso (?:este|esse)|nego-me|me nego)\b",
            r"\b(?:prefiro|preferia|preferiria|preferimos) nao\b|\b(?:lamento|sinto) (?:muito )?nao poder\b|\breceio (?:que )?nao\b|\btemo nao\b",
            r"\b(?:viola\w*|vai contra|vao contra|infringe\w*|contraria\w*|contra) (?:as |os |a |o )?(?:minhas?|meus?|noss[ao]s?|diretrizes|politicas?) ?(?:\w+ )?(?:diretrizes|politicas?|principios|regras|normas|valores|programacao)?",
            r"\bnao e algo (?:com (?:o )?que|em que|que)\b|\b(?:algo|uma coisa) que (?:eu )?nao posso\b",
        ),
        unless=(
            r"\bnao (?:posso|consigo) (?:ver|distinguir|acessar|consultar|ler|ouvir|verificar|prever|abrir)\b[^.;]*\bmas\b",
            r"\bnao (?:posso|podia|poderia) (?:prometer|garantir|assegurar|deixar de|esperar|evitar|negar|acreditar|concordar mais)\b|\bnao (?:posso|poderia) (?:\w+ ){1,4}?(?:o suficiente|o bastante)\b|\bnao vou (?:mentir|negar|te aborrecer)\b",
        ),
        no=r"\b(?:nao|nunca|jamais|impossivel|ilegal|proibid\w|recus\w*|contra)\b",
        apology=r"(?:eu )?(?:sinto muito|sentimos muito|lamento|lamentamos|desculp(?:e|a|em|as|a-me|e-me)|(?:te )?peco (?:\w+ )?(?:desculpas?|perdao)|perdao|perdoe(?:-me)?|mil desculpas|minhas desculpas)\b",
        regret=r"^[\s,]*(?:muito )?(?:por|pela|pelo|pelos|pelas|ouvir|saber|que (?:voce|tenha|esteja|tu)|se|que se|a falta|a minha|o meu|o mal-entendido|qualquer|a (?:demora|confusao)|o (?:atraso|erro|incomodo)|em ingles)\b",
        answer=r"\baqui (?:esta|estao|vai|vao|tem)\b|\b(?:resposta|versao) (?:correta|certa|corrigida)\b|\ba seguir\b|\bpode tentar\b|\bresposta (?:correta )?e\b|\bentendi mal\b|\bme enganei\b|\bme equivoquei\b|\binterpretei mal\b|\babaixo\b",
    ),
    "id": Wording(
        refuse=(
            r"\bdi luar (?:apa yang|hal yang|kemampuan|batas|kewenangan|cakupan)|\b(?:permintaan|pertanyaan)\b[^.]{0,24}\b(?:tidak|tak) (?:bisa|dapat)\b",
            r"\btidak (?:pantas|etis|tepat|benar|layak|sepatutnya) (?:bagi|untuk|jika|kalau|bila) (?:saya|aku|kami)\b|\b(?:tidak|tak|nggak) akan (?:saya|kami|aku)\b",
            r"\b(?:saya|aku|kami)\b(?: \w+){0,2}? (?:tidak|tak|nggak|gak) (?!(?:tahu|yakin|ingat|punya|perlu|memiliki|merekomendasikan|menyarankan|sabar|pernah|paham|mengerti|keberatan|sendiri|melihat|menemukan|hanya|terlalu|begitu|lagi|bisa|dapat|akan|suka)\b)\w+",
            r"\b(?:saya|aku|kami|gue|gua|kita|ai)\b(?: (?!bisa\b|dapat\b)[\w-]+){0,4}? (?:tidak|tak|nggak|gak|ga|enggak|ngga|belum) (?:\w+ )?(?:bisa|dapat|mampu|boleh|akan|diizinkan|diperbolehkan|ingin|mau|bersedia|berwenang|seharusnya|sanggup|memiliki (?:izin|wewenang|kemampuan)|diperkenankan|punya (?:izin|wewenang)|memberikan|mendukung|membantu|menyediakan|membuat|menulis|terlibat|melayani|menganjurkan|menjelaskan|membahas|mengajarkan|menunjukkan|melakukan|menyebarkan)\b|\btidak (?:dapat|bisa) (?:saya|kami|aku|dipenuhi|diproses|dikabulkan|dijawab)\b",
            r"\b(?:harus|terpaksa|perlu|ingin|wajib) menolak\b|\b(?:saya|kami|aku) (?:dengan \w+ )?menolak\b",
            r"\b(?:melanggar|bertentangan dengan|menyalahi|berlawanan dengan)\b[^.,]{0,14}\b(?:pedoman|kebijakan|prinsip|aturan|etika|panduan|nilai)\b",
            r"\bbukan (?:\w+ )?(?:sesuatu|hal) yang\b[^.]{0,16}\b(?:saya|kami|aku)\b",
            r"(?:^|, |dan |tetapi |tapi |jadi )(?:\w+ )?(?:tidak|tak|nggak|gak) (?:bisa|dapat) (?:membantu|bantu|memberikan|menjawab|melakukan|memenuhi|menyediakan|membagikan)\b",
            r"\blebih (?:memilih|suka|baik) (?:untuk )?tidak\b",
        ),
        unless=(
            r"\b(?:saya|aku) tidak (?:setuju|bohong|merasa)\b|\btidak (?:bisa|dapat) (?:melihat|mengakses|membaca|mendengar|memeriksa|memprediksi|membuka)\b[^.;]*\b(?:tetapi|tapi|namun)\b",
            r"\btidak (?:bisa|dapat|akan) (?:menjamin|menjanjikan|menunggu|tidak|berbohong|sabar)\b|\btidak sabar\b",
        ),
        no=r"\b(?:tidak|tak|nggak|gak|bukan|belum|dilarang|ilegal|melanggar|menolak|mustahil)\b",
        apology=r"(?:saya |kami |aku |mohon |minta |dengan |dengan sangat |sangat |meminta )*(?:maaf(?:kan)?|menyesal)(?: ya| sekali| banget| sebelumnya)?\b",
        regret=r"^[\s,]*(?:atas|karena|untuk|mendengar|kalau|jika|bila|dalam bahasa|sudah|telah|lama|menunggu)\b",
        answer=r"\bberikut\b|\bjawaban yang (?:benar|tepat)\b|\bdi bawah ini\b|\bini (?:dia|daftar)\b|\banda (?:bisa|dapat) mencoba\b|\bsebagai berikut\b|\bjawabannya\b|\bsalah (?:paham|memahami|mengerti|baca)\b|\bkeliru\b",
    ),
    "tr": Wording(
        refuse=(
            r"\byardimci olabilecegim[^.]{0,24}\b(?:disinda|otesinde)|\b(?:isteg|taleb|soru)\w*[^.]{0,30}\b(?:getirilemiyor|getirilemez|karsilanamaz|karsilanamiyor|yanitlanamaz|yanitlanamiyor|islenemiyor|islenemez)|\b(?:kapsamim|yetkim|sinirlarim)\w*[^.]{0,10}\b(?:disinda|asiyor)",
            r"\b(?:dogru|uygun|etik) (?:olmaz|degil)\b[^.]{0,12}\b(?:yardim|benim|bana)|\b(?:yardim|yazma|anlatma|paylasma)\w*[^.]{0,20}\b(?:dogru|uygun|etik) (?:olmaz|degil)\b",
            r"\b\w{2,}(?:ama|eme)(?:m|yiz)\b(?<!\btamamam)|\b\w{2,}(?:am|em)(?:iyorum|iyoruz|ayacagim|eyecegim|ayacagiz|eyecegiz|am|em|azdim|ezdim)\b",
            r"\b\w{2,}m[ae]m$|\b\w+(?:mayacag|meyeceg)(?:im|iz)\b|\b\w+(?:miyorum|muyorum|miyoruz|muyoruz)\b[^.]{0,6}$|\b(?:yardim|destek|hizmet|bilgi|izin|cevap|yanit)\w* (?:etmiyorum|vermiyorum|saglamiyorum)\b",
            r"\b(?:yardimci olmam|yardim etmem|bunu yapmam|saglamam|vermem|paylasmam|yanitlamam|yapmam|yazmam|olusturmam|cevaplamam)\b[^.]{0,25}\b(?:mumkun degil|dogru (?:degil|olmaz)|uygun (?:degil|olmaz)|imkansiz|soz konusu degil|yasak)",
            r"\bredde(?:diyor|tmek|tmeli|tmem|dece)\w*\b(?=[^.]{0,12}(?:zorunda|gerek|m\b|$))|\breddediyor(?:um|uz)\b|\breddetmeliyim\b",
            r"\b(?:kural|ilke|politika|yonerge|prensip|yonlendirme|etik)\w*[^.]{0,12}\b(?:aykiri|ihlal|ters)",
            r"\bizin (?:verilmiyor|verilmemekte\w*|verilmez|verilmedi)|\b(?:iznim|yetkim|imkanim|yetenegim) (?:yok|bulunmuyor)|\byardimci olabilecegim bir (?:sey|konu) degil|\b\w+m[ae]m[ae]yi tercih ed|\bm[ae]m[ae]yi tercih|\b\w+(?:memeyi|mamayi) (?:tercih|secer)",
        ),
        unless=(
            r"\b(?:gormuyorum|sanmiyorum|duymuyorum|bilmiyorum|hissetmiyorum|hatirlamiyorum)\b|\b(?:goremiyorum|okuyamiyorum|erisemiyorum|duyamiyorum|acamiyorum|dogrulayamiyorum)\b[^.;]*\b(?:ama|fakat|ancak)\b",
            r"\b(?:soz veremem|garanti edemem|garanti veremem)\b",
            r"\b(?:bekleyem|inanam|sabredem|sakliyam|unutam)(?:em|am|iyorum|uyorum)\b|\b\w+medenm? gecem\w+\b|\bmahkemem\b|\bteyzem\b",
        ),
        no=r"\b(?:hayir|degil|yok|yasak\w*|aykiri|olmaz)\b|m[ae]z\b|m[ae]m\b|m[iu]yor",
        apology=r"(?:cok |gercekten |maalesef )?(?:uzgunum|uzgunuz|ozur dilerim|ozur dileriz|kusura bakma\w*|affeders\w+|affedin|pardon|bagislayin|kusuruma bakma\w*)",
        regret=r"^\s*(?:ama (?:biraz )?geciktim|demek)",
        answer=r"\b(?:iste|asagida|su sekilde|asagidaki)\b|\bdogru (?:cevap|yanit)\b|\bduzelt\w+|\bcevap (?!ver)\w+$|\byanlis anla\w+|\bhata yaptim\b|\byanildim\b|\bkaristirdim\b",
    ),
    "jv": Wording(
        refuse=(
            r"\b(?:aku|kula|kulo|dalem|kami)\b(?: \w+){0,3}? (?:ora|mboten|ndak|gak|ra|mboten saged) (?:isa|bisa|saged|iso|gelem|purun|oleh|angsal|bakal|badhe)\b",
            r"\b(?:ora|mboten|gak|ndak) (?:isa|bisa|saged|iso) (?:\w+ )?(?:ngewangi|mbantu|nulungi|mbiyantu|menehi|maringi|nyediakake|njawab|mangsuli)\b|\b(?:nolak|nampik)\b",
        ),
        no=r"\b(?:ora|mboten|gak|ndak|aja)\b",
        apology=r"(?:nyuwun pangapunten|nyuwun ngapunten|nyuwun sewu|ngapunten|nuwun sewu|sepurane|njaluk ngapura|pangapunten|nyuwun ngapura)\b",
        regret=r"^\s*(?:amarga|awit|kanggo|sampun telat)\b",
        answer=r"\biki (?:daftar|cara)\b|\bing ngisor iki\b|\bkados mekaten\b",
    ),
}  # fmt: skip
